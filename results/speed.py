"""Times step 3 against a bare PyTorch loop and against the usual way of writing it, in turn, in one process, on a machine at rest.

    python results/speed.py   # about eight minutes on a CPU; prints the README's tables and writes results/speed.json
"""
import argparse, contextlib, io, json, os, re, subprocess, sys, time
from functools import partial
from pathlib import Path

here = Path(__file__).resolve().parent
sys.path.insert(0, str(here.parent))

import torch
from fastai.vision.all import TensorImageBW
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

import data, evidence, record, report, step3

bs,deskew,warp = step3.bs,data.Deskew(),data.RandomWarp(**step3.warp)
adam = lambda net: torch.optim.AdamW(net.parameters(), step3.lr, fused=True)


def bare(learn):
    "An epoch of the plain loop: same net, batches, augmentation, optimizer, running mean, metrics and tests, all tensors in memory."
    train,test = learn.dls.train_ds,learn.dls.valid_ds
    net = type(learn.model)().to(memory_format=torch.channels_last)
    opt,mean = adam(net),AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(.99), use_buffers=True)
    def norm(x): return x.as_subclass(torch.Tensor).sub_(data.mean).div_(data.std)
    def images(x): return deskew.encodes(TensorImageBW(x.float().div_(255)))
    def epoch():
        right = total = 0
        net.train()
        for i,idx in enumerate(torch.randperm(len(train)).split(bs)):
            x,y = images(train.x[idx]),train.y[idx]
            out = net(norm(warp.encodes(x)))
            loss = F.cross_entropy(out, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            if i % step3.every == 0: mean.update_parameters(net)
            right += (out.argmax(1) == y).sum()
            total += loss.detach()
        mean.eval()
        with torch.no_grad():
            for x,y in zip(test.x.split(data.test_bs), test.y.split(data.test_bs)):
                out = mean(norm(images(x)))
                total += F.cross_entropy(out, y)
                right += (out.argmax(1) == y).sum()
        return float(right), float(total)
    return epoch


def usual(learn, root):
    "An epoch as the assignment's public solutions write it: transforms image by image, torch's `DataLoader`, batches of 128, a plain loop."
    norm = [transforms.ToTensor(), transforms.Normalize((data.mean,), (data.std,))]
    affine = transforms.RandomAffine(8, translate=(.043, .043), scale=(.94, 1.06), shear=3)
    def loader(train): return DataLoader(datasets.MNIST(root, train=train, transform=transforms.Compose([affine]*train + norm)), batch_size=128, shuffle=train)
    train,test,net = loader(True),loader(False),type(learn.model)()
    opt = torch.optim.Adam(net.parameters(), step3.lr)
    def epoch():
        right = total = 0
        net.train()
        for x,y in train:
            opt.zero_grad()
            out = net(x)
            loss = F.cross_entropy(out, y)
            loss.backward()
            opt.step()
            right += (out.argmax(1) == y).sum().item()
            total += loss.item()
        net.eval()
        with torch.no_grad():
            for x,y in test:
                out = net(x)
                total += F.cross_entropy(out, y).item()
                right += (out.argmax(1) == y).sum().item()
        return right, total
    return epoch


def seconds(f):
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()): f()
    return time.perf_counter() - start


def epochs(learn, root, rounds=5):
    "Seconds of an epoch each way, in turn; the first round warms up."
    def ours(learn=learn): learn.fit_one_cycle(1, step3.lr)
    def one_thread():
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        ours()
        torch.set_num_threads(threads)
    changed = lambda **kwargs: partial(ours, step3.learner(data='mnist', root=root, **kwargs))
    ways = {'step3': ours, 'bare': bare(learn), 'one thread': one_thread, 'batches of 128': changed(bs=128),
            'whole frame': changed(model=record.whole_frame), 'usual': usual(learn, root)}
    found = {name: [] for name in ways}
    for r in range(rounds + 1):
        for name,epoch in ways.items():
            took = seconds(epoch)
            if r: found[name].append(round(took, 2))
    return found


kinds = {'convolution': 'conv', 'normalization and activation': 'batch_norm|relu|threshold|clamp', 'pooling': 'max_pool'}

def arithmetic(learn, batches=60):
    "Milliseconds of a training batch by kind of work, and what its floating-point operations take at the rate of a large matrix product."
    net,x,y = learn.model.train(),*next(iter(learn.dls.train))
    x,y = x.as_subclass(torch.Tensor),y.as_subclass(torch.Tensor)
    opt = adam(net)
    def per_batch(f):
        for _ in range(5): f()
        return 1000*min(seconds(f) for _ in range(batches))
    def step():
        opt.zero_grad()
        F.cross_entropy(net(x), y).backward()
    raw = TensorImageBW((learn.dls.train_ds.x[:bs].float()/255))
    net_ms,found = per_batch(step),{}
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as p:
        for _ in range(10): step()
    ops = {e.key: e.self_cpu_time_total for e in p.key_averages()}
    for kind,pattern in kinds.items(): found[kind] = net_ms * sum(t for k,t in ops.items() if re.search(pattern, k)) / sum(ops.values())
    found['rest of forward and backward'] = net_ms - sum(found.values())
    found['deskewing and augmentation'],found['optimizer'] = per_batch(lambda: warp.encodes(deskew.encodes(raw))),per_batch(opt.step)
    macs = 0
    def count(m, _, out):
        nonlocal macs
        first = m.weight.shape[1] == 1 and getattr(m, 'groups', 1) == 1  # its images need no gradient
        macs += (2 if first else 3) * m.weight[0].numel() * out[0].numel()
    hooks = [m.register_forward_hook(count) for m in net.modules() if hasattr(m, 'weight') and m.weight.ndim > 1]
    net(x)
    for h in hooks: h.remove()
    a = torch.randn(1024, 1024)
    rate = 2*1024**3 / per_batch(lambda: a @ a) * 1000
    return dict(parts={k: round(v, 2) for k,v in found.items()}, flop=2*macs*bs, gflops=round(rate/1e9, 1), floor=round(2000*macs*bs/rate, 2))


first_batch = '''
import os
from step3 import *
class Stop(Callback):
    def after_batch(self): os._exit(0)
learner(data='mnist', root=os.environ['ROOT']).fit(1, cbs=Stop())
'''

def processes(root, rounds=5):
    "Seconds from process start to fastai imported and to the first trained batch, in turn, and the peak memory of a whole run in MB."
    def took(*args):
        start = time.perf_counter()
        subprocess.run([sys.executable, '-W', 'ignore', *args], cwd=here.parent, env={**os.environ, 'ROOT': str(root)}, stdout=subprocess.DEVNULL, check=True)
        return round(time.perf_counter() - start, 2)
    found = dict(imports=[], first_batch=[])
    for r in range(rounds + 1):
        a,b = took('-c', 'from fastai.vision.all import *'),took('-c', first_batch)
        if r: found['imports'].append(a), found['first_batch'].append(b)
    run = subprocess.Popen([sys.executable, '-W', 'ignore', 'step3.py', '--data', 'mnist', '--root', root, '--epochs', '1'], cwd=here.parent, stdout=subprocess.DEVNULL)
    _,_,usage = os.wait4(run.pid, 0)
    return dict(**found, peak_mb=round(usage.ru_maxrss/1024))


def main():
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument('--root', help="folder that holds MNIST/raw; else $MNIST_ROOT, else fastai's data folder")
    args = cli.parse_args()
    root = str(data.mnist_root(args.root))
    with contextlib.redirect_stdout(io.StringIO()): learn = step3.learner(data='mnist', root=root)
    found = dict(cores=os.cpu_count(), threads=torch.get_num_threads(), instructions=torch.backends.cpu.get_cpu_capability(), torch=torch.__version__,
                 epochs=epochs(learn, root), arithmetic=arithmetic(learn), processes=processes(root))
    report.save(lambda p: p.write_text(json.dumps(found, indent=1) + '\n'), here/'speed.json')
    print(evidence.speed_table(), evidence.arithmetic_table(), sep='\n\n')


if __name__ == '__main__': main()
