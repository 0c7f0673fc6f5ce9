"""python tile_search.py [--compile]: times candidates of tiles on a card, or compiles them ahead."""
import os, sys, time, itertools
COMPILE = "--compile" in sys.argv
import torch
if COMPILE:
    import triton
    from bench.gpu_triton import StandIn
    triton.runtime.driver.set_active(StandIn(90))
from friction_triton import scores, configurations
from friction_triton.configurations import Tile
from friction_kernels.scores.backend import Term
dev = "cpu" if COMPILE else "cuda"
N, D, C = (2048 if COMPILE else 65536), 768, 52
L = int(N*0.7)
torch.manual_seed(0)
z = torch.randn(N, D, device=dev); z = z / z.norm(dim=1, keepdim=True)
g = scores.TritonScores(z, None, torch.full((1,), 4.0, device=dev), "bf16", mask_diagonal=True)
numbers = torch.zeros(N, device=dev) - 12; cols = torch.rand(N, C, device=dev); cols[:L] = 0
U = range(L, N); A = range(N); LL = range(L)
def t(**sizes): return sizes
CAND = {
 "logsumexp": [((128,256,64),8,s) for s in (3,4)] + [((128,128,64),4,3),((128,128,64),4,4),((128,128,64),8,4),((64,256,64),4,4),((256,128,64),8,3),((256,128,64),8,4),((128,256,64),4,3)],
 "apply_vector": [((128,256,64),8,s) for s in (3,4)] + [((128,128,64),4,4),((256,128,64),8,3),((64,256,64),4,4)],
 "apply_wide": [((128,128,64,True),8,s) for s in (3,4)] + [((128,128,64,False),8,3),((128,128,64,True),4,3),((64,128,64,True),4,4),((64,128,64,False),4,4),((128,64,64,False),4,4),((128,64,64,False),8,4),((128,256,64,True),8,3),((64,256,64,True),4,3)],
 "coefficients": [((128,64,16),8,s) for s in (3,4)] + [((128,128,16),8,3),((128,128,16),8,4),((64,128,16),4,4),((64,128,16),8,4),((128,64,16),4,4),((128,64,32),8,4),((64,64,16),4,4),((64,256,16),8,4)],
 "product": [((128,128,64),8,s) for s in (3,4)] + [((128,256,64),8,3),((128,256,64),8,4),((256,128,64),8,3),((128,128,64),4,4),((128,128,64),4,3),((64,256,64),4,4),((256,128,64),8,4)],
}
default = scores.tile
def tile_for(kernel, cand):
    dims, warps, stages = cand
    if kernel == "product": sizes = {"BLOCK_M": dims[0], "BLOCK_N": dims[1]}
    elif kernel in ("logsumexp","apply_vector"): sizes = {"BLOCK_M": dims[0], "BLOCK_N": dims[1]}
    elif kernel == "apply_wide": sizes = {"BLOCK_M": dims[0], "BLOCK_N": dims[1], "BLOCK_K": dims[2], "IN_HALVES": dims[3]}
    else: sizes = {"BLOCK_M": dims[0], "BLOCK_N": dims[1], "BLOCK_K": dims[2]}
    sizes["BLOCK_D"] = 64
    return Tile(tuple(sizes.items()), warps, (stages,))
chosen = {}
def fake(kernel, precision, arch):
    if kernel in chosen: return tile_for(kernel, chosen[kernel])
    base = default(kernel, precision, 90)
    return Tile(base.sizes, base.num_warps, base.stages[:1])
scores.tile = fake
term = Term(*[numbers]*3, cols, cols); plain = Term(*[numbers]*3)
RUN = {
 "logsumexp": [("all", lambda: g.logsumexp(numbers))],
 "apply_vector": [("all", lambda: g.apply(A, A, numbers, numbers, cols[:, :1]))],
 "apply_wide": [("UU", lambda: g.apply(U, U, numbers[:len(U)], numbers[:len(U)], cols[:len(U)])), ("UL", lambda: g.apply(U, LL, numbers[:len(U)], numbers[:L], cols[:L])), ("LU", lambda: g.apply(LL, U, numbers[:L], numbers[:len(U)], cols[:len(U)])), ("AU53", lambda: g.apply(A, U, numbers, numbers[:len(U)], torch.cat((cols[:len(U)], cols[:len(U), :1]), 1)))],
 "coefficients": [("gradient", lambda: g.gradient((term, plain, plain)))],
 "product": [("gradient", lambda: g.gradient((term, plain, plain)))],
}
def ms(f, reps=4):
    f(); out=[]
    for _ in range(reps):
        a,b=(torch.cuda.Event(enable_timing=True) for _ in range(2)); a.record(); f(); b.record(); b.synchronize(); out.append(a.elapsed_time(b))
    return sorted(out)[len(out)//2]
def profiled(f, name):
    from torch.profiler import profile, ProfilerActivity
    f(); torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as p:
        f(); torch.cuda.synchronize()
    return sum(e.device_time_total for e in p.key_averages() if name in e.key)/1e3
if COMPILE:
    scores.STRIPE_BYTES = 0
    from friction_triton import configurations
    configurations._processors = lambda d: 132
begin = time.time()
def once(kernel, cand):
    chosen.clear(); chosen[kernel] = cand
    out = []
    for label, f in RUN[kernel]:
        try:
            if COMPILE: f(); out.append(label)
            elif kernel in ("coefficients","product"): out.append(f"{label} {profiled(f, kernel + '_kernel'):.2f}")
            else: out.append(f"{label} {ms(f):.2f}")
        except Exception as e: out.append(f"{label} {type(e).__name__} {str(e)[:60]}")
    print(f"{time.time()-begin:6.1f} {kernel:13s} {cand} {'; '.join(out)}", flush=True)
for kernel in ("product", "coefficients", "apply_wide", "apply_vector", "logsumexp"):
    for cand in CAND[kernel]: once(kernel, cand)
if not COMPILE:
    for stripe in (96, 192, 300, 600):
        scores.STRIPE_BYTES = stripe << 20
        chosen.clear()
        print("stripe", stripe, f"product {profiled(RUN['product'][0][1], 'product_kernel'):.2f} coefficients {profiled(RUN['product'][0][1], 'coefficients_kernel'):.2f} gradient {ms(RUN['product'][0][1]):.2f}", flush=True)
        chosen["product"] = ((128,256,64),8,3)
        print("stripe", stripe, f"wide product {profiled(RUN['product'][0][1], 'product_kernel'):.2f} gradient {ms(RUN['product'][0][1]):.2f}", flush=True)
