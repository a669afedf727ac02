"""Series: judge, forecast, stream."""
