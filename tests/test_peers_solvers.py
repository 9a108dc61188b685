"Our solvers take the same steps as diffusers' schedulers (sigma = 1 - t, output = -velocity) and torchdiffeq's fixed grids, with the same field on the same grid."
import pytest, torch
from fmnb.core import generator
from fmnb.oracles import two_moons
from fmnb.solvers import DPMSolver2M, Euler, Heun, Midpoint, RK4, power_grid, shifted_grid, uniform_grid

moons = two_moons().to(torch.float32)
x0 = torch.randn(32, 2, generator=generator(0))
field = moons.velocity

def diffuse(scheduler, x):
    "Run a diffusers scheduler whose sigmas are set: its model sees t = 1 - sigma and answers minus our velocity."
    scheduler.set_begin_index(0)
    for sigma, timestep in zip(scheduler.sigmas[:-1], scheduler.timesteps): x = scheduler.step(-field(x, (1 - sigma).expand(len(x))), timestep, x).prev_sample
    return x

@pytest.mark.parametrize("n, shift", [(1, 1.), (4, 1.), (10, 3.), (25, 3.), (25, .5)])
def test_flow_match_euler(n, shift):
    from diffusers import FlowMatchEulerDiscreteScheduler
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=(1 - uniform_grid(n)[:-1]).tolist())          # unshifted: the scheduler shifts them, as shifted_grid does
    ts = shifted_grid(n, shift)
    assert torch.allclose(1 - scheduler.sigmas, ts, atol=1e-6)
    assert torch.allclose(scheduler.timesteps, 1000 * (1 - ts[:-1]), atol=1e-3)
    want = diffuse(scheduler, x0)
    assert torch.allclose(Euler()(field, x0, ts), want, rtol=0, atol=1e-6)

def dpm(**kwargs):
    from diffusers import DPMSolverMultistepScheduler
    return DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", solver_order=2, solver_type="midpoint", prediction_type="flow_prediction", use_flow_sigmas=True, **kwargs)

@pytest.mark.parametrize("n, shift", [(1, 1.), (2, 1.), (5, 1.), (20, 1.), (20, 3.)])
def test_dpm_solver_on_its_own_sigmas(n, shift):
    scheduler = dpm(flow_shift=shift)
    scheduler.set_timesteps(n)
    assert torch.allclose(diffuse(scheduler, x0), DPMSolver2M()(field, x0, 1 - scheduler.sigmas), rtol=0, atol=1e-5)

@pytest.mark.parametrize("ts", [uniform_grid(8), shifted_grid(12, 3.), power_grid(10, 2.), uniform_grid(8, .1, .9)], ids=["uniform", "shifted", "power", "inside"])
def test_dpm_solver_on_our_grids(ts):
    scheduler = dpm(lower_order_final=False, final_sigmas_type="zero" if ts[-1] == 1 else "sigma_min")
    scheduler.set_timesteps(len(ts) - 1)
    scheduler.sigmas, scheduler.timesteps = 1 - ts, torch.arange(len(ts) - 1)      # from exactly sigma = 1, where log(alpha) is minus infinity
    got, want = DPMSolver2M()(field, x0, ts), diffuse(scheduler, x0)
    assert want.isfinite().all() and torch.allclose(got, want, rtol=0, atol=1e-5)
    assert not torch.allclose(got, Euler()(field, x0, ts), atol=1e-3)

@pytest.mark.parametrize("solver, method", [(Euler(), "euler"), (Midpoint(), "midpoint"), (Heun(), "heun2")])
def test_torchdiffeq_fixed_grids(solver, method):
    from torchdiffeq import odeint
    o, x, ts = two_moons(), x0.double(), shifted_grid(10, 2., dtype=torch.float64)
    want = odeint(lambda t, x: o.velocity(x, t.expand(len(x))), x, ts, method=method)[-1]
    assert torch.allclose(solver(o.velocity, x, ts), want, rtol=0, atol=1e-11)

def test_torchdiffeq_rk4_converges_to_ours():
    "torchdiffeq's rk4 is the 3/8 rule, another method of order 4: not the same steps, the same limit."
    from torchdiffeq import odeint
    o, x, ts = two_moons(), x0.double(), uniform_grid(160, dtype=torch.float64)
    want = odeint(lambda t, x: o.velocity(x, t.expand(len(x))), x, ts, method="rk4")[-1]
    assert torch.allclose(RK4()(o.velocity, x, ts), want, rtol=0, atol=1e-5)
