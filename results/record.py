"""Records the evidence: trains experiments on MNIST, seed by seed, side by side in processes of one thread each.

    python results/record.py step3                     # seeds 0 to 4 of step 3, those not recorded yet
    python results/record.py step3 --seeds 20 --jobs 8
    python results/record.py step3 --folds --seeds 2   # on the six held-out folds of the training images: how a recipe is chosen
    python results/record.py --help                    # the experiments

Each run writes results/NAME/seedSS.csv, a row per epoch, and beside it seedSS.json with versions, device, threads and, as packed bits,
which of the judged images its last epoch got right. With --folds: results/folds/NAME/foldF-seedSS.csv and .json.
What is recorded is skipped, so that an interrupted recording goes on where it was; delete files to record them anew.
"""
import argparse, base64, contextlib, io, json, os, platform, sys
from functools import partial
from pathlib import Path

here = Path(__file__).resolve().parent
sys.path.insert(0, str(here.parent))

import fastai, numpy, torch, torchvision
from joblib import Parallel, delayed, parallel_config
from torch import nn
from fastprogress import progress_bar

from fastai.vision.all import Adam, ParamScheduler, SGD

import report, step1, step2, step3
from data import RandomWarp
from data import not_mnist
from models import Model_1, Model_2, Model_3, Model_4, conv, count, head, separable, turned


def without_batch_norm():
    "Model_1 with biases in place of batch norm."
    net = Model_1()
    for block in net:
        if not isinstance(block, nn.Sequential): continue
        block[0] = nn.Conv2d(block[0].in_channels, block[0].out_channels, 3, padding=block[0].padding)
        block[1] = nn.Identity()
    return net

def with_dropout(model=Model_2, p=.05):
    "`model` with dropout of `p` after each ReLU."
    net = model()
    for block in net:
        if isinstance(block, nn.Sequential): block.append(nn.Dropout(p))
    return net

def average_pooling():
    "Model_2 with the plain average in place of the 6×6 depthwise kernel."
    net = Model_2()
    net[6] = nn.AvgPool2d(6)
    return net

def pooling_last():
    "Model_2 with its max-pooling after batch norm and ReLU."
    net = Model_2()
    for block in net:
        if isinstance(block, nn.Sequential) and isinstance(block[1], nn.MaxPool2d): block.append(block.pop(1))
    return net

def flattened():
    "Model_2 with flattening and a linear layer in place of the 6×6 depthwise kernel, and fewer channels to pay for it."
    return nn.Sequential(*list(Model_2())[:5], conv(16, 6), nn.Flatten(), nn.Linear(6*6*6, 10))

def whole_frame():
    "Model_3 without cropping, so with a 6×6 map at the end."
    return nn.Sequential(*list(Model_3())[1:-4], *head(16, 6))

class Repeat(nn.Module):
    "Repeats the maps, so that a depthwise convolution after it has `times` filters for each."
    def __init__(self, times):
        super().__init__()
        self.times = times
    def forward(self, x): return torch.cat([x]*self.times, 1)

def separable_layers():
    "Model_3 with depthwise-separable layers after the first two: wider and one more, no batch norm between depthwise and pointwise."
    def layer(*args, **kwargs):
        block = separable(*args, **kwargs)
        del block[1]
        return block
    return nn.Sequential(nn.ZeroPad2d(-2), conv(1, 8, pad=0, norm=False), conv(8, 8, pad=0, pool=True), Repeat(3),
                         layer(24, 24), layer(24, 32, pool=True), layer(32, 40), layer(40, 40), *head(40, 5))

def without_average(**kwargs):
    "Step 3, judged by the weights as they are after each epoch."
    learn = step3.learner(**kwargs)
    learn.remove_cb(learn.average)
    learn.fit_one_cycle(step3.epochs, step3.lr, pct_start=step3.warm_up)
    return learn

def constant_rate(**kwargs):
    "Step 3 at step 2's constant rate."
    learn = step3.learner(**kwargs)
    learn.fit(step3.epochs, step2.lr)
    return learn

def falling_steps(**kwargs):
    "Step 3 with a rate that starts at its peak and falls to a tenth after two thirds of the batches, to a hundredth after five sixths."
    learn = step3.learner(**kwargs)
    learn.fit(step3.epochs, cbs=ParamScheduler({'lr': lambda done: step3.lr * (1 if done < 2/3 else .1 if done < 5/6 else .01)}))
    return learn

def with_sgd(**kwargs):
    "Step 3 with SGD and momentum, at a peak rate of its own."
    learn = step3.learner(**kwargs)
    learn.opt_func = partial(SGD, mom=.9)
    learn.fit_one_cycle(step3.epochs, .15, pct_start=step3.warm_up)
    return learn

def turned_net(a=(2, 2), b=(4, 6), c=(8, 8)):
    "Model_3's shape in turned filters, `a`, `b` and `c` of them in the layers of its three scales; no batch norm in the head."
    last = 4*c[-1]
    return nn.Sequential(nn.ZeroPad2d(-2), turned(1, a[0], pad=0, lift=True), turned(a[0], a[1], pad=0, pool=True),
                         turned(a[1], b[0]), turned(b[0], b[1], pool=True), turned(b[1], c[0]), *(turned(i, o) for i,o in zip(c, c[1:])),
                         nn.Conv2d(last, last, 5, groups=last, bias=False), nn.Flatten(), nn.Linear(last, 10))

once = partial(step3.train, model=turned_net, opt_func=Adam, tfms=[RandomWarp(**step3.warp, deskew=True)])


experiments = {
    'step1': step1.train,
    'step2': step2.train,
    'step3': step3.train,
    'step3-8epochs': partial(step3.train, epochs=8),
    'step3-Model_4': partial(step3.train, model=Model_4),
    'ablations/no-batch-norm':        partial(step1.train, model=without_batch_norm),
    'ablations/average-pooling':      partial(step2.train, model=average_pooling),
    'ablations/flattened':            partial(step2.train, model=flattened),
    'ablations/dropout':              partial(step2.train, model=with_dropout),
    'ablations/pooling-last':         partial(step2.train, model=pooling_last),
    'ablations/step3-dropout':        partial(step3.train, model=partial(with_dropout, Model_3)),
    'ablations/whole-frame':          partial(step3.train, model=whole_frame),
    'ablations/separable-layers':     partial(step3.train, model=separable_layers, deskew=False),
    'ablations/no-average':           without_average,
    'ablations/no-deskewing':         partial(step3.train, deskew=False),
    'ablations/no-deskewing-8epochs': partial(step3.train, epochs=8, deskew=False),
    'ablations/no-deskewing-Model_4': partial(step3.train, model=Model_4, deskew=False),
    'ablations/no-augmentation':      partial(step3.train, warp={}),
    'ablations/no-elastic':           partial(step3.train, warp={**step3.warp, 'elastic': 0}),
    'ablations/no-affine':            partial(step3.train, warp={'elastic': step3.warp['elastic']}),
    'ablations/constant-rate':        constant_rate,
    'ablations/falling-steps':        falling_steps,
    'ablations/valley':               partial(step3.train, lr=1.4e-3),
    'ablations/minimum':              partial(step3.train, lr=3.6e-2),
    'ablations/steep':                partial(step3.train, lr=5.8e-2),
    'ablations/sgd':                  with_sgd,
    'turned':                         once,
    'turned-adamw':                   partial(once, opt_func=step3.adam),
    'turned-rate-0.03':               partial(once, lr=3e-2),
    'turned-wider':                   partial(once, model=partial(turned_net, b=(6, 6))),
    'turned-half':                    partial(once, model=partial(turned_net, b=(4, 4), c=(5, 5))),
}


def run_path(name, seed, fold=None):
    "The CSV of a run of experiment `name`."
    return here/'folds'/name/f'fold{fold}-seed{seed:02d}.csv' if fold else here/name/f'seed{seed:02d}.csv'


def right(learn):
    "Which of the images that `learn` is judged on it gets right, in order: eight to a byte, base64 (`numpy.unpackbits` reads it)."
    with learn.no_bar(), learn.no_logging(): logits,labels = learn.get_preds()
    return base64.b64encode(numpy.packbits((logits.argmax(1) == labels).numpy())).decode()


def record(name, seed, fold, root):
    "Train experiment `name` with `seed` on MNIST's training images, those of `fold` left out, and write its two files."
    with contextlib.redirect_stdout(io.StringIO()): learn = experiments[name](seed=seed, data='mnist', root=root, fold=fold)
    rows,path = list(learn.history.rows),run_path(name, seed, fold)
    if not_mnist in learn.dls.train_ds.name or len(rows) != learn.n_epoch: raise RuntimeError(f'{name}, seed {seed}: not a full run on MNIST')
    path.parent.mkdir(parents=True, exist_ok=True)
    about = dict(parameters=count(learn.model), threads=torch.get_num_threads(), device=str(learn.dls.device),
                 cpu=torch.backends.cpu.get_cpu_capability(), system=f'{platform.system()} {platform.machine()}',
                 python=platform.python_version(), torch=torch.__version__, torchvision=torchvision.__version__, fastai=fastai.__version__,
                 right=right(learn))
    report.save(lambda p: p.write_text(json.dumps(about, indent=1) + '\n'), path.with_suffix('.json'))
    report.save(lambda p: report.write_csv(rows, p), path)  # last: a CSV means that the run is whole


def main():
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument('names', nargs='+', choices=experiments, metavar='NAME', help=', '.join(experiments))
    cli.add_argument('--seeds', type=report.natural, default=5, help='record seeds 0 to SEEDS-1 (default: 5)')
    cli.add_argument('--jobs', type=report.natural, default=os.cpu_count(), help='runs side by side (default: one per core)')
    cli.add_argument('--backend', default='loky', help='joblib backend, such as loky, dask or ray (default: loky)')
    cli.add_argument('--root', help="folder that holds MNIST/raw; else $MNIST_ROOT, else fastai's data folder")
    cli.add_argument('--folds', action='store_true', help='six runs a seed, each judged on one held-out fold of the training images')
    args = cli.parse_args()
    todo = [(name, seed, fold) for seed in range(args.seeds) for name in args.names for fold in (range(1, 7) if args.folds else [None])
            if not run_path(name, seed, fold).exists()]
    print(f'{len(todo)} runs to record')
    with parallel_config(backend=args.backend, n_jobs=args.jobs, inner_max_num_threads=1):
        done = Parallel(return_as='generator_unordered')(delayed(record)(*run, args.root) for run in todo)
        for _ in progress_bar(done, total=len(todo)): pass


if __name__ == '__main__':
    import record  # workers can import this module by name, but cannot unpickle what is defined in a script
    record.main()
