"""Records the evidence: trains experiments on MNIST, seed by seed, side by side in processes of one thread each.

    python results/record.py step3                     # seeds 0 to 4 of step 3, those not recorded yet
    python results/record.py step3 --seeds 20 --jobs 8
    python results/record.py step3 --folds --seeds 2   # on the six held-out folds of the training images: how a recipe is chosen
    python results/record.py --help                    # the experiments

Each run writes results/NAME/seedSS.csv, a row per epoch, and beside it seedSS.json with versions, device, threads, and, of the net in the
end, the accuracy on the training images without augmentation and dropout, and the test images that it gets wrong. With --folds:
results/folds/NAME/foldF-seedSS.csv and .json.
What is recorded is skipped, so that an interrupted recording goes on where it was; delete files to record them anew.
"""
import argparse, contextlib, io, json, os, platform, sys, time
from functools import partial
from pathlib import Path

here = Path(__file__).resolve().parent
sys.path.insert(0, str(here.parent))

import report, step1, step2, step3
import fastai, torch, torchvision
from fastai.vision.all import Callback, progress_bar
from joblib import Parallel, delayed, parallel_config
from torch import nn

from data import RandomWarp, clean_train, not_mnist
from models import Model_2, Model_3, Model_4, Model_5, conv, count, head, turned


def with_relu(make=Model_3, relu=nn.ReLU):
    "Model_3, or the net that `make` makes, with `relu` in place of SiLU."
    net = make()
    for block in net:
        if isinstance(block, nn.Sequential): block[-1] = relu(inplace=True)
    return net

def plain_filters(p=.05):
    "Model_2's build with plain filters in place of turned ones, and fewer channels to pay for them."
    return nn.Sequential(nn.ZeroPad2d(-2), conv(1, 8, pad=0, p=p), conv(8, 8, pad=0, pool=True, p=p), conv(8, 8, p=p), conv(8, 16, pool=True, p=p),
                         conv(16, 16, p=p), conv(16, 16, p=p), *head(16, 5))

def layer_more():
    "Model_3 with a layer more: filters 2, 2, 4, 4, 6, 8, 8."
    return nn.Sequential(nn.ZeroPad2d(-2), turned(1, 2, pad=0, lift=True), turned(2, 2, pad=0, pool=True), turned(2, 4), turned(4, 4),
                         turned(4, 6, pool=True), turned(6, 8), turned(8, 8), *head(32, 5))

def wider_frame():
    "Model_3 on images of 26×26, not 24×24."
    net = Model_3()
    net[0] = nn.ZeroPad2d(-1)
    return net

def without_ema(**kwargs):
    "Step 3, judged by the raw weights after each epoch."
    learn = step3.learner(**kwargs)
    learn.remove_cb(learn.ema)
    learn.fit_one_cycle(step3.epochs, step3.lr, pct_start=step3.pct_start)
    return learn

class WeakerEnd(Callback):
    "Halves the augmentation for the last five epochs."
    def before_epoch(self):
        if self.epoch != self.n_epoch-5: return
        warp = next(t for t in self.dls.train.after_batch.fs if isinstance(t, RandomWarp))
        for name in ('degrees', 'shift', 'scale', 'shear', 'elastic'): setattr(warp, name, getattr(warp, name)/2)


experiments = {
    'step1': step1.train,
    'step2': step2.train,
    'step3': step3.train,
    'step3-8epochs': partial(step3.train, epochs=8),
    'step3-Model_4': partial(step3.train, model=Model_4),
    'step3-Model_5': partial(step3.train, model=Model_5),
    'filters-2-2-3-3-4-4': partial(step3.train, model=partial(Model_2, (2, 2, 3, 3, 4, 4), p=0.)),  # smaller than Model_5
    'ablations/step2-plain-filters': partial(step2.train, model=plain_filters),
    'ablations/no-augmentation':     partial(step3.train, warp={'deskew': True}),
    'ablations/no-deskewing':        partial(step3.train, warp={**step3.warp, 'deskew': False}),
    'ablations/no-ema':              without_ema,
    # candidates on the folds
    'step2-no-dropout': partial(step2.train, model=Model_3),
    'step3-dropout': partial(step3.train, model=Model_2),
    'frame-26':      partial(step3.train, model=wider_frame),
    'peak-0.03':     partial(step3.train, lr=3e-2),
    'weaker-end':    partial(step3.train, cbs=WeakerEnd()),
    'leaky-relu':    partial(step3.train, model=partial(with_relu, relu=partial(nn.LeakyReLU, .1))),
    'filters-2-2-4-4-6-8-8': partial(step3.train, model=layer_more),
    # the earlier ones, with ReLU
    'relu': partial(step3.train, model=with_relu),
    'filters-2-4-4-6-8-8':   partial(step3.train, model=partial(with_relu, partial(Model_2, (2, 4, 4, 6, 8, 8), p=0.))),
    'batch-of-128': partial(step3.train, model=with_relu, bs=128),
    'batch-of-512': partial(step3.train, model=with_relu, bs=512),
}


def run_path(name, seed, fold=None):
    "The CSV of a run of experiment `name`."
    return here/'folds'/name/f'fold{fold}-seed{seed:02d}.csv' if fold else here/name/f'seed{seed:02d}.csv'


def mistakes(learn):
    "Image -> digit that `learn` takes it for, of all images that it is judged on and gets wrong."
    logits,labels = learn.get_preds()
    guess = logits.argmax(1)
    return {i: int(guess[i]) for i in (guess != labels).nonzero().flatten().tolist()}


def record(name, seed, fold, root):
    "Train experiment `name` with `seed` on MNIST's training images, those of `fold` left out, and write its two files."
    torch.set_num_threads(1)
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()): learn = experiments[name](seed=seed, data='mnist', root=root, fold=fold)
    rows,path,seconds = report.history(learn),run_path(name, seed, fold),time.perf_counter() - start
    if not_mnist in learn.dls.train_ds.name or len(rows) != learn.n_epoch: raise RuntimeError(f'{name}, seed {seed}: not a full run on MNIST')
    path.parent.mkdir(parents=True, exist_ok=True)
    about = dict(parameters=count(learn.model), seconds=round(seconds), threads=torch.get_num_threads(), device=str(learn.dls.device),
                 cpu=torch.backends.cpu.get_cpu_capability(), system=f'{platform.system()} {platform.machine()}',
                 python=platform.python_version(), torch=torch.__version__, torchvision=torchvision.__version__, fastai=fastai.__version__)
    if not fold:
        with learn.no_bar(), learn.no_logging(): about.update(clean=learn.validate(dl=clean_train(learn.dls))[1], mistakes=mistakes(learn))
    path.with_suffix('.json').write_text(json.dumps(about) + '\n', encoding='utf-8')
    report.write(rows.to_csv, path)  # last: a CSV means that the run is whole


def main():
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument('names', nargs='+', choices=experiments, metavar='NAME', help=', '.join(experiments))
    cli.add_argument('--seeds', type=int, default=5, help='record seeds 0 to SEEDS-1 (default: 5)')
    cli.add_argument('--jobs', type=int, default=os.cpu_count(), help='runs side by side (default: one per core)')
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
