"Each loop in C by itself, forward and backward, against float64 and autograd: a batch of one, one as large as the number of tokens, odd sizes; nothing is written beside its place, and two threads give the bits of one."
import re, subprocess, sys
from pathlib import Path
import pytest, torch
from fmnb.dit import Block, rope_2d, rotate
from fmnb.fast import FastBlock, call, fast, kernels

pytestmark = pytest.mark.skipif(kernels() is None, reason="no C compiler")
SHAPES = [(1, 4, 2, 8), (5, 3, 3, 6), (4, 4, 1, 34), (7, 1, 1, 2), (2, 9, 5, 14)]                            # B, N, heads, D
EPS, BF, F = 1e-3, torch.bfloat16, torch.float32

class Bench:
    "Random tensors that C can read, and places for what it writes, each between margins."
    def __init__(self, seed): self.gen, self.places = torch.Generator().manual_seed(seed), []
    def randn(self, *shape, dtype=F): return torch.randn(shape, generator=self.gen).to(dtype)
    def room(self, *shape, dtype=F):
        n = torch.Size(shape).numel(); whole = torch.full((n + 64,), float("nan"), dtype=dtype); self.places.append(whole)
        return whole[32:32 + n].view(shape)
    def check_margins(self):
        for p in self.places: assert p[:32].isnan().all() and p[-32:].isnan().all()

def near(got, want):
    "Equal to the rounding of float32 sums, and of the last step to bf16 where there is one."
    want = want.detach(); slack = want.abs() * 2**-8 if got.dtype == BF else 0
    assert got.isfinite().all() and ((got.double() - want).abs() <= slack + 2e-6 * want.abs().max()).all(), (got.double() - want).abs().max() / want.abs().max()

def exact(x): return x.double().requires_grad_()
def rms(x): return (x.square().mean(-1, keepdim=True) + EPS).sqrt()

def norm(b, B, N, H, D, gated, normed):
    "What `norm` and `norm_back` write, in pairs of got and wanted."
    C = H * D; h, a, mod, dout, dx = b.randn(B, N, C), b.randn(B, N, C, dtype=BF), b.randn(B, 6 * C), b.randn(B, N, C), b.randn(B, N, C, dtype=BF)
    shift, scale, gate = mod.chunk(6, -1)[1:4]; opt = lambda on, v: v if on else None
    out, x, r = b.room(B, N, C), b.room(B, N, C, dtype=BF), b.room(B, N)
    call("norm", h, opt(gated, a), opt(gated, gate), opt(normed, shift), opt(normed, scale), opt(gated, out), opt(normed, x), opt(normed, r), B, N, C, 6 * C, EPS)
    h_, a_, s, k, g = map(exact, (h, a, shift, scale, gate)); total = h_ + (g[:, None] * a_ if gated else 0); total.retain_grad()
    pairs = [(out, total)] * gated
    loss = (total * dout).sum()
    if normed: n = total / rms(total) * (1 + k[:, None]) + s[:, None]; loss = loss + (n * dx).sum(); pairs += [(x, n), (r, 1 / rms(total)[..., 0])]
    loss.backward(); dmod = b.room(B, 6 * C); ds, dk, dg = dmod.chunk(6, -1)[1:4]; dh, da = b.room(B, N, C), b.room(B, N, C, dtype=BF)
    call("norm_back", dout, opt(normed, dx), opt(normed, out if gated else h), opt(normed, r), opt(normed, scale), opt(gated, a), opt(gated, gate), opt(normed, dh), opt(normed, ds), opt(normed, dk), opt(gated, da), opt(gated, dg), B, N, C, 6 * C)
    assert dmod.isnan().sum() == B * C * (6 - 2 * normed - gated)                                           # the other columns are left alone
    return pairs + [(dh, total.grad), (ds, s.grad), (dk, k.grad)] * normed + [(da, a_.grad), (dg, g.grad)] * gated

def heads(b, B, N, H, D):
    qkv, w, d = b.randn(B, N, 3, H, D, dtype=BF), b.randn(2, D), b.randn(3, B, H, N, D, dtype=BF)
    angle = b.randn(N, D // 2).repeat(1, 2); cos, sin = angle.cos(), angle.sin()
    out, r, back, dw = b.room(3, B, H, N, D, dtype=BF), b.room(B, N, 2, H), b.room(B, N, 3, H, D, dtype=BF), b.room(B, 2, D)
    call("heads", qkv, w, cos, sin, out, r, B, N, H, D, EPS, D ** -.5)
    call("heads_back", *d, qkv, r, w, cos, sin, back, dw, B, N, H, D, D ** -.5)
    x, w_ = exact(qkv), exact(w); q, k, v = x.permute(2, 0, 3, 1, 4)                                         # each (B, H, N, D)
    turned = lambda v, w: rotate(v / rms(v) * w, cos.double(), sin.double())
    want = torch.stack([turned(q, w_[0]) * D ** -.5, turned(k, w_[1]), v]); (want * d).sum().backward()
    return [(out, want), (r, 1 / rms(torch.stack([x[:, :, 0], x[:, :, 1]], 2))[..., 0]), (back, x.grad), (dw.sum(0), w_.grad)]

def softmax(b, B, N, H, D):
    z, d = b.randn(B * H, N, N), b.randn(B * H, N, N, dtype=BF); p = z.softmax(-1).to(BF)
    got = b.room(B * H, N, N, dtype=BF); got.copy_(d); call("softmax_back", p, got, B * H * N, N)
    pairs = []
    for size, most in ((20, 100.), (2e4, 1e5), (20, 63.9), (1e-3, .1)):                                      # rows that are decided by one number, too; below 64 without a look at the largest
        far = (size * b.randn(B * H, N, N)).clamp(-most, most).to(BF); far = far.where(far.abs() <= most, 0); own = b.room(B * H, N, N, dtype=BF); own.copy_(far)
        call("softmax", own, B * H * N, N, most); pairs.append((own, far.double().softmax(-1)))
    p, d = p.double(), d.double(); return [(got, p * (d - (p * d).sum(-1, keepdim=True))), *pairs]

LOOPS = {f"norm {name}": lambda b, *s, gated=g, normed=n: norm(b, *s, gated, normed) for name, g, n in (("alone", False, True), ("behind a gate", True, True), ("left out", True, False))} | dict(heads=heads, softmax=softmax)

@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("loop", LOOPS)
def test_a_loop_is_its_formula(loop, shape):
    b = Bench(0)
    for got, want in LOOPS[loop](b, *shape): near(got, want)
    b.check_margins()

def test_no_score_is_larger_than_the_bound(monkeypatch):
    "What `FastBlock` tells the softmax: equal queries and keys reach it, and nothing is beyond it but by rounding."
    B, N, H, D = 5, 9, 3, 32; C, b, seen = H * D, Bench(4), []
    def spy(name, s, *args): (seen.append((s.float().abs().max().item(), args[-1])) if name == "softmax" else None); call(name, s, *args)
    monkeypatch.setattr("fmnb.fast.call", spy)
    q, v = b.randn(C, C), b.randn(C, C); rope, w = rope_2d(3, D), torch.full((2, D), 1.7); w[1] = -2.5
    others = b.randn(C, C), b.randn(4 * C, C), b.randn(C, 4 * C)
    for k in (q, b.randn(C, C)): FastBlock.apply(b.randn(B, N, C), b.randn(B, 6 * C), w, *rope, torch.cat([q, k, v]), *others, H, (EPS,) * 3, False)
    (reached, most), (other, same) = seen
    assert most == same == pytest.approx(D ** .5 * 1.7 * 2.5) and .98 * most < reached < 1.02 * most and other < 1.02 * most

def test_squared_relu_of_every_number():
    "Of all finite bf16 numbers, to the last bit, ties of the rounding among them; where a slope 2x is beyond float32 (x from 2^127 on), x d may also come first, which is then exact."
    u = torch.arange(-2**15, 2**15).to(torch.int16).view(BF); u = u[u.isfinite()].contiguous(); b = Bench(1)
    z, d = b.room(*u.shape, dtype=BF), b.randn(len(u), dtype=BF); back = b.room(*u.shape, dtype=BF); back.copy_(d)
    call("relu2", u, z, len(u)); call("relu2_back", u, back, len(u)); x = u.float().relu(); steep = (2 * x).isinf()
    want, exact = (2 * x * d.float()).to(BF), (2 * x.double() * d.double()).float().to(BF)
    assert torch.equal(z, x.square().to(BF)) and torch.equal(back[~steep], want[~steep]) and ((back == want) | (back == exact))[steep].all() and 0 < steep.double().mean() < .01; b.check_margins()

def test_squared_relu_lets_nan_through():
    b = Bench(2); u = b.randn(40, dtype=BF); u[7] = float("nan"); z, back = b.room(40, dtype=BF), b.room(40, dtype=BF); back.copy_(torch.ones(40))
    call("relu2", u, z, 40); call("relu2_back", u, back, 40)
    for got in (z, back): assert got[7].isnan() and got.isnan().sum() == 1

@pytest.fixture
def threads():
    n = torch.get_num_threads(); yield torch.set_num_threads; torch.set_num_threads(n)

def test_two_threads_give_the_bits_of_one(threads):
    def all_loops(n):
        threads(n); out = [got.clone() for loop in LOOPS.values() for got, _ in loop(Bench(2), 5, 3, 3, 6)]
        assert kernels().omp_get_max_threads() == n
        return out
    assert all(torch.equal(one, two) for one, two in zip(all_loops(1), all_loops(2)))

def test_a_block_on_two_threads(threads):
    b = Bench(3); block = Block(36, 3, 2.); h, c, rope = b.randn(5, 9, 36), b.randn(5, 36), rope_2d(3, 12)
    for p in block.parameters(): torch.nn.init.normal_(p, std=.2, generator=b.gen)
    def run(n):
        threads(n); block.zero_grad(); x = h.clone().requires_grad_()
        with torch.autocast("cpu", BF): y = fast(block, None)(x, c, rope)
        y.square().sum().backward(); return [y.detach(), x.grad, *(p.grad.clone() for p in block.parameters())]
    for one, two in zip(run(1), run(2)): assert (one - two).norm() <= 1e-2 * one.norm()                        # the products are torch's, which may add in another order

MEMORY = """
import re, resource, sys, torch
from pathlib import Path
from fmnb.fast import kernels
now = lambda file, name: int(re.search(name + r":\\s+(\\d+)", Path("/proc/self", file).read_text())[1]) >> 10           # MB
if sys.argv[1] == "scarce": resource.setrlimit(resource.RLIMIT_AS, (now("status", "VmSize") + 2000 << 20,) * 2)
kernels(); start = now("smaps_rollup", "AnonHugePages"), now("status", "VmRSS")
x = torch.ones(32 << 20); print(now("smaps_rollup", "AnonHugePages") - start[0], now("status", "VmRSS") - start[1], int(x.sum()) == 32 << 20)
"""

PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")

@pytest.mark.skipif(not PAGES.exists() or "[madvise]" not in PAGES.read_text() or not hasattr(kernels(), "mallopt"), reason="large pages are not to be had, or for everybody, or this is not glibc")
def test_memory_lies_on_large_pages_where_there_is_room():
    took = lambda how: [int(v) if v.isdigit() else v for v in subprocess.run([sys.executable, "-c", MEMORY, how], check=True, capture_output=True, text=True).stdout.split()]
    refused = lambda: re.search(r"thp_fault_fallback (\d+)", Path("/proc/vmstat").read_text())[1]; before = refused()
    (huge, rss, right), (none, scarce, also) = took("ample"), took("scarce")
    if refused() != before: pytest.skip("the machine has no large pages left")
    assert huge > 64 and 100 < rss < 160 and right == "True"                                                    # of 128 MB, and no more are taken
    assert none == 0 and 100 < scarce < 160 and also == "True"
