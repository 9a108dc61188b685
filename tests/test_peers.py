"Our paths and couplings give the targets and plans of torchcfm (Tong et al. 2024), from the same noise, data and times."
import numpy as np, pytest, torch
from fmnb.core import generator
from fmnb.oracles import eight_gaussians
from fmnb.paths import AffinePath, CondOT, Cosine, independent, minibatch_ot, sinkhorn_ot
torchcfm = pytest.importorskip("torchcfm", exc_type=ImportError)
from torchcfm.optimal_transport import OTPlanSampler

SHAPES = [(7, 2), (1, 2), (4, 1, 4, 4), (5, 3, 4, 4), (33, 784)]

def batch(shape, seed=0):
    g = generator(seed)
    return torch.randn(shape, generator=g, dtype=torch.float64), torch.randn(shape, generator=g, dtype=torch.float64) + .5, torch.rand(shape[0], generator=g, dtype=torch.float64)

def agree(point, theirs):
    "x_t, u_t and t are theirs to 1e-6."
    t, x_t, u_t = theirs
    for a, b in ((point.t, t), (point.x_t, x_t), (point.v, u_t)): assert torch.allclose(a, b, rtol=0, atol=1e-6)

@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scheduler, matcher", [(CondOT(), "ConditionalFlowMatcher"), (Cosine(), "VariancePreservingConditionalFlowMatcher")])
def test_targets(shape, scheduler, matcher):
    x0, x1, t = batch(shape)
    agree(AffinePath(scheduler).sample(independent(x0, x1), x1, t), getattr(torchcfm, matcher)(sigma=0.).sample_location_and_conditional_flow(x0, x1, t))

@pytest.mark.parametrize("shape", SHAPES)
def test_exact_plan(shape):
    x0, x1, _ = batch(shape)
    plan = torch.from_numpy(OTPlanSampler("exact").get_map(x0, x1))                                       # rows: noise, columns: data
    ours = (minibatch_ot(x0, x1)[None].flatten(2) == x0[:, None].flatten(2)).all(-1).double() / len(x0)
    assert torch.allclose(ours, plan, rtol=0, atol=1e-6)

@pytest.mark.parametrize("shape", SHAPES)
def test_exact_targets(shape):
    "torchcfm draws pairs from its plan, with replacement; the pairs it drew are pairs of ours, with the same targets."
    x0, x1, t = batch(shape)
    matcher = torchcfm.ExactOptimalTransportConditionalFlowMatcher(sigma=0.)
    np.random.seed(0); a, b = matcher.ot_sampler.sample_plan(x0, x1)
    rows = torch.cdist(b.flatten(1), x1.flatten(1)).argmin(1)
    assert torch.equal(x1[rows], b) and torch.equal(minibatch_ot(x0, x1)[rows], a)
    np.random.seed(0)
    agree(AffinePath().sample(minibatch_ot(x0, x1)[rows], x1[rows], t), matcher.sample_location_and_conditional_flow(x0, x1, t))

@pytest.mark.parametrize("reg", [.02, .05, .5])
def test_sinkhorn_plan(reg):
    "Theirs has no unit of cost; ours is the mean cost."
    x1 = eight_gaussians().sample(64, generator(1)); x0 = torch.randn(x1.shape, generator=generator(2), dtype=x1.dtype)
    mean = (torch.cdist(x0, x1)**2).mean().item()
    theirs = torch.from_numpy(OTPlanSampler("sinkhorn", reg=reg * mean).get_map(x0, x1)).T * len(x1)
    assert torch.allclose(sinkhorn_ot(reg).plan(x0, x1), theirs, rtol=0, atol=2e-3)
