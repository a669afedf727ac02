"""Parts that several mixers and models share: modules, and functions that need no parameters."""
