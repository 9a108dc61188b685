"Our metrics give what clean-fid (Parmar et al. 2022) and torch-fidelity (Obukhov et al. 2020) give on the same features."
import numpy as np, pytest, torch
from fmnb.core import generator
from fmnb.metrics import Moments, frechet, kernel_distance, kernel_distance_subsets, kernel_self, precision_recall
cleanfid = pytest.importorskip("cleanfid.fid"); torch_fidelity = pytest.importorskip("torch_fidelity")
from torch_fidelity import metric_fid, metric_kid, metric_prc

def clouds(d=32, n=500, m=400):
    a = torch.randn(n, d, generator=generator(1), dtype=torch.float64); b = torch.randn(m, d, generator=generator(2), dtype=torch.float64)
    return a @ torch.randn(d, d, generator=generator(3), dtype=torch.float64) / d**.5, .9 * b + .1

def test_frechet():
    a, b = clouds(); stats = [(v.mean(0).numpy(), np.cov(v.numpy().T)) for v in (a, b)]
    streamed = [Moments() for _ in range(2)]
    for s, v in zip(streamed, (a, b)):
        for part in v.split(77): s.update(part)
    theirs = cleanfid.frechet_distance(*stats[0], *stats[1]), metric_fid.fid_statistics_to_metric(*(dict(mu=m, sigma=c) for m, c in stats), verbose=False)["frechet_inception_distance"]
    for ours in (frechet(a, b), frechet(*streamed)):
        for other in theirs: assert abs(ours / other - 1) < 1e-4

def test_kernel_distance():
    a, b = clouds(n=300, m=300)
    once = metric_kid.kid_features_to_metric(a, b, kid_subsets=1, kid_subset_size=300, verbose=False)["kernel_inception_distance_mean"]
    for block in (1000, 77): assert abs(kernel_distance(a, b, block) / once - 1) < 1e-4     # one subset that is everything
    assert abs(kernel_distance(a, b, of_b=kernel_self(b)) / once - 1) < 1e-4
    whole = cleanfid.kernel_distance(a.numpy(), b.numpy(), num_subsets=1, max_subset_size=300)
    assert abs(kernel_distance(a, b) / whole - 1) < 1e-4
    np.random.seed(0); theirs = cleanfid.kernel_distance(a.numpy(), b.numpy(), num_subsets=200, max_subset_size=100)
    ours, error = kernel_distance_subsets(a, b, subsets=200, size=100)
    assert abs(ours - theirs) < 6 * error

@pytest.mark.parametrize("k", [3, 5])
def test_precision_recall(k):
    a, b = clouds(d=6)
    theirs = metric_prc.prc_features_to_metric(b, a, prc_neighborhood=k, prc_batch_size=100, verbose=False)      # generated first there
    ours = precision_recall(a, b, k)
    assert abs(ours[0] - theirs["precision"]) < 1e-4 and abs(ours[1] - theirs["recall"]) < 1e-4
