import torch, time, sys
from bench.gloss_forms import make_problem
from bench.gloss_contenders import CONTENDERS
from torch.profiler import profile, ProfilerActivity
ours={c.name:c for c in CONTENDERS}
def run(nodes, precision):
    problem=make_problem(nodes,768,52 if nodes>1000 else 8,"cuda",torch.float32,precision)
    print(problem.num_labelled)
    loss=ours["GLoss"].build(problem)
    x=problem.embeddings.detach().requires_grad_()
    def step():
        x.grad=None; l=loss(x); l.backward(); return l
    step(); step(); torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as p:
        step(); torch.cuda.synchronize()
    for e in sorted((e for e in p.events() if "apply_kernel" in e.name or "logsumexp" in e.name), key=lambda e:e.time_range.start):
        print(f"   {e.device_time_total:10.1f} us {e.name[:40]}",flush=True)
run(65536,"bf16")
