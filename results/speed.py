"""Times an epoch of step 3 against a bare PyTorch loop and other ways, in turn, on a machine at rest: python results/speed.py

Writes results/speed.csv, a row for each of three rounds, in seconds. MNIST is in $MNIST_ROOT.
"""
import contextlib, io, os, subprocess, sys, tempfile, time
from functools import partial

from record import here, plain_filters, uncropped
import data, pandas as pd, step3, torch
from fastai.vision.all import TensorImageBW
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader
from torchvision import datasets, transforms


def loop(net, opt, train, test, ema=None):
    "An epoch of the plain loop over batches: training, then loss and accuracy on the test images."
    right = total = 0
    for x,y in train:
        out = net.train()(x)
        loss = F.cross_entropy(out, y)
        loss.backward()
        opt.step()
        opt.zero_grad()
        if ema: ema.update_parameters(net)
        right,total = right + (out.argmax(1) == y).sum(),total + loss.detach()
    net = (ema.module if ema else net).eval()
    with torch.no_grad():
        for x,y in test:
            out = net(x)
            right,total = right + (out.argmax(1) == y).sum(),total + F.cross_entropy(out, y)
    return float(right), float(total)

def bare(learn):
    "Step 3 in the plain loop: same net, batches, warp, optimizer (torch's Adam with decay), EMA and metrics, all in memory."
    net,warp = type(learn.model)().to(memory_format=torch.channels_last),data.RandomWarp(**step3.warp)
    opt = torch.optim.AdamW(net.parameters(), step3.lr, (.9, .99), 1e-5, step3.wd)
    ema = AveragedModel(net, multi_avg_fn=learn.ema.average, use_buffers=True)
    def batches(ds, idxs):
        for idx in idxs:
            x = warp(TensorImageBW(ds.x[idx].float().div_(255)), split_idx=ds.split_idx).as_subclass(torch.Tensor)
            yield x.sub_(data.mean).div_(data.std), ds.y[idx]
    train,test = learn.dls.train_ds,learn.dls.valid_ds
    return lambda: loop(net, opt, batches(train, torch.randperm(len(train)).split(step3.bs)),
                        batches(test, torch.arange(len(test)).split(data.test_bs)), ema)

def usual(learn, bs=128):
    "As public solutions write it: torchvision's transforms image by image, a `DataLoader`, batches of 128, no elastic distortion, no EMA."
    norm = [transforms.ToTensor(), transforms.Normalize((data.mean,), (data.std,))]
    affine = transforms.RandomAffine(8, translate=(.043, .043), scale=(.94, 1.06), shear=11)
    train,test = (datasets.MNIST(os.environ['MNIST_ROOT'], train=o, transform=transforms.Compose([affine]*o + norm)) for o in (True, False))
    net = type(learn.model)()
    return partial(loop, net, torch.optim.Adam(net.parameters(), step3.lr), DataLoader(train, bs, shuffle=True), DataLoader(test, bs))

def command(epochs):
    "The whole command from process start, with its pictures, in an empty folder."
    line = [sys.executable, here.parent/'step3.py', '--data', 'mnist', '--epochs', str(epochs)]
    with tempfile.TemporaryDirectory() as folder: done = subprocess.run(line, cwd=folder, capture_output=True, text=True)
    if 'verdict' not in done.stdout: sys.exit(done.stderr)

def ways():
    "name -> function that trains and tests for an epoch."
    learn,one = (step3.learner(data='mnist') for _ in range(2))
    plain,whole = (step3.learner(data='mnist', model=net) for net in (partial(plain_filters, 0.), uncropped))
    def fit(learn, threads=torch.get_num_threads()):
        was = torch.get_num_threads()
        torch.set_num_threads(threads)
        learn.fit_one_cycle(1, step3.lr)
        torch.set_num_threads(was)
    return {'step3.py': partial(fit, learn), 'the same in a bare PyTorch loop': bare(one), 'on one thread': partial(fit, one, 1),
            'with ordinary convolutions, fewer channels': partial(fit, plain), 'without the crop to 24×24': partial(fit, whole),
            'the same net in the usual way': usual(one), 'all of `step3.py --epochs 4`': partial(command, 4)}

if __name__ == '__main__':
    found,rows = ways(),[]
    for _ in range(4):
        rows.append({})
        for name,epoch in found.items():
            start = time.perf_counter()
            with contextlib.redirect_stdout(io.StringIO()): epoch()
            rows[-1][name] = round(time.perf_counter() - start, 2)
    pd.DataFrame(rows[1:]).to_csv(here/'speed.csv', index=False)  # the first round warms up
