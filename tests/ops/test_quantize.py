import torch
from laws import assert_near

from stepscan.ops.quantize import moved_codes, nearest


def test_nearest_is_the_smallest_distance():
    x, codes = torch.randn(2, 9, 3, 5), torch.randn(3, 7, 5)
    want = (x[..., None, :] - codes).square().sum(-1).argmin(-1)
    assert torch.equal(nearest(x, codes), want)


def test_codes_go_to_the_mean_of_what_is_nearest_and_others_stay():
    x, codes = torch.randn(2, 9, 3, 5).double(), torch.randn(3, 30, 5).double()
    moved, index = moved_codes(codes, x, decay=0.9), nearest(x, codes)
    for h in range(3):
        for c in range(30):
            mine = x[:, :, h][index[..., h] == c]
            want = 0.9 * codes[h, c] + 0.1 * mine.mean(0) if len(mine) else codes[h, c]
            assert_near(moved[h, c], want, what=f"code {h} {c}")
    length = moved_codes(codes, x, decay=0.9, unit=True).norm(dim=-1)
    assert_near(length, torch.ones_like(length), what="length")
