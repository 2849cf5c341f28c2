"""Times an epoch of step 3 against a bare PyTorch loop and other ways, in turn, on a machine at rest.

    python results/speed.py   # a row of results/speed.csv for each of three rounds, in seconds; MNIST is in $MNIST_ROOT
"""
import contextlib, io, os, subprocess, sys, tempfile, time
from copy import deepcopy
from functools import partial

from experiments import here, plain_filters, step3, uncropped
import data, pandas as pd, torch
from fastai.vision.all import TensorImageBW
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import datasets, transforms


@torch.no_grad()
def average(means, net, n):
    "Step 3's EMA of the weights: put the weights of `net` after batch `n` into the net `means`."
    for mean,now in zip(means.state_dict().values(), net.state_dict().values()):
        if n == 1 or not now.is_floating_point(): mean.copy_(now)
        else: mean.lerp_(now, step3.ema/(n + step3.ema))

def measure(net, x, y):
    out = net(x)
    return torch.stack([F.cross_entropy(out, y), (out.argmax(1) == y).float().mean()])

def loop(net, opt, train, test, ema=None):
    "An epoch of the plain loop: training, then the test images, with loss and accuracy of both."
    total = 0
    for n,(x,y) in enumerate(train, 1):
        found = measure(net.train(), x, y)
        found[0].backward()
        opt.step()
        opt.zero_grad()
        if ema: average(ema, net, n)
        total += found.detach()
    net = (ema or net).eval()
    with torch.no_grad():
        for x,y in test: total += measure(net, x, y)
    return total.tolist()

def bare(learn):
    "Step 3 in the plain loop: same net, batches, warp, optimizer (torch's Adam with decay), EMA and metrics."
    net = step3.Model_3()
    warp,ema = data.RandomWarp(**step3.warp),deepcopy(net)
    opt = torch.optim.AdamW(net.parameters(), step3.lr, (.9, .99), 1e-5, step3.wd)
    def batches(ds, order):
        for i in order:
            x = warp(TensorImageBW(ds.x[i].float().div_(255)), split_idx=ds.split_idx)
            yield x.as_subclass(torch.Tensor).sub_(data.mean).div_(data.std), ds.y[i]
    def epoch():
        train,test = learn.dls.train_ds,learn.dls.valid_ds
        shuffled = torch.randperm(len(train)).split(step3.bs)
        in_order = torch.arange(len(test)).split(data.test_bs)
        loop(net, opt, batches(train, shuffled), batches(test, in_order), ema)
    return epoch

def usual():
    "As public solutions do it: image by image, a `DataLoader`, batches of 128, no elastic distortion, no EMA."
    affine = transforms.RandomAffine(8, translate=(.043, .043), scale=(.94, 1.06), shear=11)
    normalize = transforms.Normalize((data.mean,), (data.std,))
    def loader(train, *tfms):
        tfms = transforms.Compose([*tfms, transforms.ToTensor(), normalize])
        return DataLoader(datasets.MNIST(os.environ['MNIST_ROOT'], train, tfms), 128, shuffle=train)
    net = step3.Model_3()
    opt = torch.optim.Adam(net.parameters(), step3.lr)
    return partial(loop, net, opt, loader(True, affine), loader(False))

def fit(learn, threads=torch.get_num_threads()):
    torch.set_num_threads(threads)
    learn.fit_one_cycle(1, step3.lr)

def command():
    "The whole command from its start, with its pictures, in an empty folder."
    line = [sys.executable, here.parent/'step3.py', '--data', 'mnist', '--epochs', '4']
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(line, cwd=folder, check=True, stdout=subprocess.DEVNULL)

def ways():
    "name -> function that trains and tests for an epoch."
    def learner(**kwargs): return step3.learner(data='mnist', **kwargs)
    return {
        'step3.py': partial(fit, learner()),
        'the same in a bare PyTorch loop': bare(learner()),
        'on one thread': partial(fit, learner(), 1),
        'with ordinary convolutions, fewer channels': partial(fit, learner(model=partial(plain_filters, 0.))),
        'without the crop to 24×24': partial(fit, learner(model=uncropped)),
        'the same net in the usual way': usual(),
        'all of `step3.py --epochs 4`': command}


if __name__ == '__main__':
    found,rows = ways(),[]
    for _ in range(4):
        rows.append({})
        for name,epoch in found.items():
            start = time.perf_counter()
            with contextlib.redirect_stdout(io.StringIO()): epoch()
            rows[-1][name] = round(time.perf_counter() - start, 2)
    pd.DataFrame(rows[1:]).to_csv(here/'speed.csv', index=False)  # the first round warms up
