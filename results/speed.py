"""Times epochs of steps 2 and 3 and of other ways to train their nets, and whole commands; in turn, all on the CPU.

    python results/speed.py   # a row of results/speed.csv for each of five rounds, in seconds; MNIST is in $MNIST_ROOT

The machine is to be at rest.
"""
import contextlib, io, os, subprocess, sys, tempfile
from functools import partial
from timeit import timeit

from experiments import Model_2, here, plain_filters, pools, step2, step3, uncropped
import data, pandas as pd, torch
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms


def measure(net, x, y):
    out = net(x)
    return torch.stack([F.cross_entropy(out, y), (out.argmax(1) == y).float().mean()])

def loop(net, opt, train, test, mean=None):
    "An epoch of the plain loop: training, then the test images, with loss and accuracy of both."
    total = 0
    for x,y in train:
        found = measure(net.train(), x, y)
        found[0].backward()
        opt.step()
        opt.zero_grad()
        if mean: mean.update_parameters(net)
        total += found.detach()
    net = (mean or net).eval()
    with torch.no_grad():
        for x,y in test: total += measure(net, x, y)

def bare():
    "Step 3 in the plain loop: same net, batches, warp and metrics; torch's Adam with decay and average of the weights."
    dls = data.mnist_dls('mnist', device='cpu')
    net,warp = step3.Model_3(),data.RandomWarp(**step3.warp)
    opt = torch.optim.AdamW(net.parameters(), step3.lr, (.9, .99), 1e-5, step3.wd)
    mean = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(), use_buffers=True)
    def batches(ds, order):
        for i in order:
            x,y = ds[i]
            x = warp(x, split_idx=ds.split_idx).as_subclass(torch.Tensor)
            yield x.sub_(data.mean).div_(data.std), y.as_subclass(torch.Tensor)
    def epoch():
        train,test = dls.train_ds,dls.valid_ds
        shuffled = torch.randperm(len(train)).split(step3.bs)
        in_order = torch.arange(len(test)).split(data.test_bs)
        loop(net, opt, batches(train, shuffled), batches(test, in_order), mean)
    return epoch

def usual():
    "As public solutions do it: image by image, a `DataLoader`, batches of 128, no elastic distortion, no average."
    affine = transforms.RandomAffine(8, translate=(.043, .043), scale=(.94, 1.06), shear=11)
    def loader(train, *tfms):
        tfms = transforms.Compose([*tfms, transforms.ToTensor(), transforms.Normalize((data.mean,), (data.std,))])
        return DataLoader(datasets.MNIST(os.environ['MNIST_ROOT'], train, tfms), 128, shuffle=train)
    net = step3.Model_3()
    opt = torch.optim.Adam(net.parameters(), step3.lr)
    return partial(loop, net, opt, loader(True, affine), loader(False))

def command(epochs):
    "The whole command from its start, with its pictures, in an empty folder."
    line = [sys.executable, here.parent/'step3.py', '--data', 'mnist', '--epochs', f'{epochs}']
    no_gpu = {**os.environ, 'CUDA_VISIBLE_DEVICES': ''}
    with tempfile.TemporaryDirectory() as folder:
        said = subprocess.run(line, cwd=folder, env=no_gpu, text=True, capture_output=True)
    if 'verdict' not in said.stdout: raise RuntimeError(said.stderr)  # a missed target is no failure

def epoch(step=step3, **kwargs):
    "Step 2 has no schedule, but that takes no time."
    return partial(step.learner(data='mnist', device='cpu', **kwargs).fit_one_cycle, 1, step.lr)

def ways():
    "name -> function that trains and tests: for an epoch, or by the whole command."
    return {
        'step3.py': epoch(),
        'the same in a bare PyTorch loop': bare(),
        'on one thread': epoch(),
        'with ordinary convolutions, fewer channels': epoch(model=partial(plain_filters, 0.)),
        'without the crop to 24×24': epoch(model=uncropped),
        'with the dropout of step 2': epoch(model=Model_2),
        'the same net in the usual way': usual(),
        'step2.py': epoch(step2),
        'step2.py on all 28×28 pixels': epoch(step2, model=partial(uncropped, Model_2)),
        'step2.py with pooling after batch norm and SiLU': epoch(step2, model=partial(pools, 0, 3)),
        'all of `step3.py --epochs 4`': partial(command, 4),
        'all of `step3.py --epochs 3`': partial(command, 3)}


if __name__ == '__main__':
    timed,threads = ways(),torch.get_num_threads()
    def seconds(name):
        torch.set_num_threads(1 if name == 'on one thread' else threads)
        return round(timeit(timed[name], number=1), 2)
    with contextlib.redirect_stdout(io.StringIO()):
        rounds = [{name: seconds(name) for name in timed} for _ in range(6)]
    pd.DataFrame(rounds[1:]).to_csv(here/'speed.csv', index=False)  # the first round warms up
