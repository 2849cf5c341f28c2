"""Times an epoch of step 3 against a bare PyTorch loop and against the usual way of writing it, in turn, on a machine at rest.

    python results/speed.py   # about ten minutes on a CPU; writes results/speed.json
"""
import argparse, contextlib, io, json, os, sys, time
from functools import partial
from pathlib import Path

here = Path(__file__).resolve().parent
sys.path.insert(0, str(here.parent))

import data, record, step3
import torch
from copy import deepcopy
from fastai.vision.all import TensorImageBW
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import datasets, transforms


def bare(learn):
    "An epoch of the plain loop: same net, batches, warp, optimizer (torch's Adam with decay), average, metrics and tests, all in memory."
    train,test,warp = learn.dls.train_ds,learn.dls.valid_ds,data.RandomWarp(**step3.warp)
    net = type(learn.model)().to(memory_format=torch.channels_last)
    opt,mean = torch.optim.AdamW(net.parameters(), step3.lr, betas=(.9, .99), eps=1e-5),deepcopy(net).eval()
    def images(x, split_idx): return warp(TensorImageBW(x.float().div_(255)), split_idx=split_idx).as_subclass(torch.Tensor).sub_(data.mean).div_(data.std)
    def epoch():
        right = total = 0
        net.train()
        for i,idx in enumerate(torch.randperm(len(train)).split(step3.bs)):
            y = train.y[idx]
            out = net(images(train.x[idx], 0))
            loss = F.cross_entropy(out, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            if i % step3.ema_every == 0:
                for m,p in zip(mean.state_dict().values(), net.state_dict().values()):
                    if m.is_floating_point(): m.lerp_(p, .01)
            right += (out.argmax(1) == y).sum()
            total += loss.detach()
        with torch.no_grad():
            for x,y in zip(test.x.split(data.test_bs), test.y.split(data.test_bs)):
                out = mean(images(x, 1))
                total += F.cross_entropy(out, y)
                right += (out.argmax(1) == y).sum()
        return float(right), float(total)
    return epoch


def usual(learn, root):
    "An epoch as public solutions write it: transforms image by image, torch's `DataLoader`, batches of 128, a plain loop."
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


def epochs(root, rounds):
    "Seconds of an epoch each way, in turn; the first round warms up."
    learn,plain = step3.learner(data='mnist', root=root),step3.learner(data='mnist', root=root, model=partial(record.plain_filters, p=0.))
    def ours(learn): learn.fit_one_cycle(1, step3.lr)
    def one_thread():
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        ours(learn)
        torch.set_num_threads(threads)
    ways = {'step3': partial(ours, learn), 'bare': bare(learn), 'one thread': one_thread, 'plain filters': partial(ours, plain), 'usual': usual(learn, root)}
    found = {name: [] for name in ways}
    for r in range(rounds + 1):
        for name,epoch in ways.items():
            took = seconds(epoch)
            if r: found[name].append(round(took, 2))
    return found


def main():
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument('--root', default=os.environ.get('MNIST_ROOT'), help='folder that holds MNIST/raw; else $MNIST_ROOT')
    cli.add_argument('--rounds', type=int, default=5, help='rounds that count (default: 5)')
    args = cli.parse_args()
    found = dict(cores=os.cpu_count(), threads=torch.get_num_threads(), instructions=torch.backends.cpu.get_cpu_capability(), torch=torch.__version__,
                 epochs=epochs(args.root, args.rounds))
    (here/'speed.json').write_text(json.dumps(found, indent=1) + '\n', encoding='utf-8')


if __name__ == '__main__': main()
