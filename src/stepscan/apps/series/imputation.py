"""What a gap in a series most likely held: forecasts into it from before, and back into it from after.

The model reads up to the gap and forecasts into it. Where the gap ends within the data the same is
done from the other side with the same weights: the series is read backwards from its end, and the
forecast of the reversed series is the past of this one. A linear or a recurrent model of a series
that looks alike both ways can do that; how well this one does is not assumed but measured. Runs of
values that are known, in the validation part, are hidden, and the error of either side at its
distance h from the last value it saw gives it a weight, that of the better side growing with the
square of the ratio of the errors (inverse variance):

    w = e_back(k)^2 / (e_forth(h)^2 + e_back(k)^2)       h steps after the gap begins, k before it ends
    q = w q_forth + (1 - w) q_back

A third side joins them: the straight line between the values around the gap, which no model beats
in a gap of a few steps. It has no bands of its own and takes those of the others. Quantiles are
averaged level by level (Vincent averages), so they do not cross; errors are averaged over hidden
runs of the same length as the gap (the nearest of LENGTHS). Steps further from both ends than the
horizon take the season before, as the base forecast does.
"""
