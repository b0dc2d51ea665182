"""The counter-based generator: published values, independence of the order of drawing, moments."""

import torch

from rtrl_ext._random import draw_seed, normal, philox, signs


def words(*values):
    return tuple(torch.tensor(v) for v in values)


def test_philox_known_answers():
    """The vectors of Random123's kat_vectors for philox4x32 with 10 rounds."""
    ones = 0xFFFFFFFF
    cases = [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ones,) * 4, (ones,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ]
    for counter, key, expected in cases:
        assert tuple(int(x) for x in philox(words(*counter), words(*key))) == expected


def test_steps_rows_and_units_can_be_drawn_apart():
    seed = torch.tensor(2**61 + 12345)
    z = normal(seed, 6, 4, 7, stream=2)
    assert z.shape == (6, 4, 7) and z.dtype == torch.float64
    assert torch.equal(normal(seed, 1, 4, 7, stream=2, first_step=3), z[3:4])
    assert torch.equal(normal(seed, 6, 2, 7, stream=2), z[:, :2])
    assert torch.equal(normal(seed, 6, 4, 3, stream=2), z[..., :3])
    for other in (normal(seed, 6, 4, 7, stream=1), normal(seed + 1, 6, 4, 7, stream=2)):
        assert not (other == z).any()


def test_moments():
    z = normal(torch.tensor(7), 200, 40, 25)
    n = z.numel()
    assert abs(z.mean()) < 4 / n**0.5
    assert abs(z.var() - 1) < 4 * (2 / n) ** 0.5
    assert abs((z**3).mean()) < 4 * (15 / n) ** 0.5
    assert abs((z**4).mean() - 3) < 4 * (96 / n) ** 0.5
    flat = z.flatten()
    for lag in (1, 2, 4, 25):
        assert abs((flat[lag:] * flat[:-lag]).mean()) < 4 / n**0.5


def test_seed_comes_from_torchs_generator():
    device = torch.device("cpu")
    torch.manual_seed(5)
    a, b = draw_seed(device), draw_seed(device)
    torch.manual_seed(5)
    assert draw_seed(device) == a and a != b and a >= 0
    seeds = torch.func.vmap(lambda x: x + draw_seed(device))(torch.zeros(3, dtype=torch.int64))
    assert (seeds == seeds[0]).all()


def test_signs_of_steps_rows_and_indices_can_be_drawn_apart():
    first = torch.tensor([4, 0, 9])
    z = signs(2**61 + 12345, first, 5, 300, stream=2)
    assert z.shape == (5, 3, 300) and (z.abs() == 1).all()
    assert torch.equal(signs(2**61 + 12345, first + 3, 1, 300, stream=2), z[3:4])
    assert torch.equal(signs(2**61 + 12345, first[:2], 5, 300, stream=2), z[:, :2])
    assert torch.equal(signs(2**61 + 12345, first, 5, 130, stream=2), z[..., :130])
    shifted = signs(2**61 + 12345, torch.tensor([6, 2, 11]), 3, 300, stream=2)
    assert torch.equal(shifted, z[2:])
    for other in (signs(2**61 + 12345, first, 5, 300), signs(5, first, 5, 300, stream=2)):
        assert 0.4 < (other == z).double().mean() < 0.6


def test_signs_are_bits_of_philox():
    """Sign i is bit i mod 32 of word i / 32, of a draw whose stream has its top bit set."""
    counter = words(1, 2, 7, 3 | 1 << 31)
    draw = philox(counter, words(0x89ABCDEF, 0x01234567))
    bits = [int(draw[i // 32]) >> i % 32 & 1 for i in range(128)]
    found = signs(0x0123456789ABCDEF, torch.full((3,), 7), 1, 256, stream=3)
    assert found[0, 2, 128:].tolist() == [2 * bit - 1 for bit in bits]


def test_moments_of_signs():
    z = signs(7, torch.arange(40), 200, 25).double()
    n = z.numel()
    assert abs(z.mean()) < 4 / n**0.5
    flat = z.flatten()
    for lag in (1, 2, 25, 32, 25 * 40, 25 * 41):
        assert abs((flat[lag:] * flat[:-lag]).mean()) < 4 / (n - lag) ** 0.5
