"""Records the evidence: trains experiments on MNIST, one thread a run, and appends every whole run to results/epochs.csv and runs.csv.

    python results/record.py step3                     # seeds 0 to 4 of step 3, those not recorded yet
    python results/record.py step3 --seeds 20 --jobs 8
    python results/record.py step3 --folds --seeds 2   # on the six held-out folds of the training images: how a recipe is chosen
    python results/record.py step3 --scheduler tcp://host:8786   # on the workers of a Dask cluster

An interrupted recording continues where it was. Delete a run's rows in runs.csv to record it anew.
"""
import argparse, contextlib, fcntl, hashlib, inspect, io, json, os, platform, subprocess, sys, time
from functools import partial
from pathlib import Path

here = Path(__file__).resolve().parent
sys.path.insert(0, str(here.parent))

import report, step1, step2, step3
import fastai, pandas as pd, torch, torchvision
from fastai.vision.all import progress_bar
from torch import nn

from data import clean_train, not_mnist
from models import Model_2, Model_3, Model_4, Model_5, conv, count, head

key = ['experiment', 'fold', 'seed']  # a run; fold 0: trained on all training images, evaluated on the test images


def relu():
    "Model_3 with ReLU for SiLU."
    net = Model_3()
    for block in net:
        if isinstance(block, nn.Sequential): block[-1] = nn.ReLU()
    return net

def average_pooling():
    "Model_3 with plain global average pooling."
    net = Model_3()
    net[7] = nn.AdaptiveAvgPool2d(1)
    return net

def uncropped():
    "Model_3 on all 28×28 pixels."
    net = Model_3()
    net[0],net[7] = nn.Identity(),nn.Conv2d(32, 32, 6, groups=32, bias=False)
    return net

def plain_filters(p=.05):
    "Model_2's build with ordinary convolutions, and fewer channels to keep the budget."
    return nn.Sequential(nn.ZeroPad2d(-2), conv(1, 8, pad=0, p=p), conv(8, 8, pad=0, pool=True, p=p), conv(8, 8, p=p), conv(8, 16, pool=True, p=p),
                         conv(16, 16, p=p), conv(16, 16, p=p), *head(16, 5))

# Each experiment is a step, with what is changed in it: arguments of its `train`.
experiments = {
    'step1': (step1, {}),
    'step2': (step2, {}),
    'step3': (step3, {}),
    'step3-8epochs': (step3, dict(epochs=8)),
    'step3-4epochs': (step3, dict(epochs=4)),
    'step3-Model_4': (step3, dict(model=Model_4)),
    'step3-Model_5': (step3, dict(model=Model_5)),
    'step2-plain-filters': (step2, dict(model=plain_filters)),
    # parts that cost code, left out one at a time
    'without-EMA':     (step3, dict(ema=0)),
    'without-elastic': (step3, dict(warp={**step3.warp, 'elastic': 0})),
    'without-crop':    (step3, dict(model=uncropped)),
    'ReLU':            (step3, dict(model=relu)),
    'average-pooling': (step3, dict(model=average_pooling)),
    # values of a part that costs none
    **{f'{name}-{value}': (step3, {name: value}) for name,value in
       (('wd', .01), ('wd', .3), ('lr', 1e-2), ('lr', 3e-2), ('ema', .996), ('ema', .999), ('pct_start', .25))},
    **{f'{name}-{value}': (step3, dict(warp={**step3.warp, name: value})) for name,value in
       (('degrees', 5), ('degrees', 12), ('shift', .8), ('shift', 2), ('scale', .1), ('shear', .1), ('shear', .3), ('elastic', .6))},
}


def recipe(name):
    "All that makes experiment `name` what it is, as JSON: the arguments of its step's `learner` and `train`, with a digest of the net's layers."
    step,change = experiments[name]
    found = {o.name: o.default for f in (step.learner, step.train) for o in inspect.signature(f).parameters.values()} | change
    net = found['model']
    found['model'] = f'{net.__name__} {hashlib.md5(str(net()).encode()).hexdigest()[:8]}'
    return json.dumps({k: v for k,v in found.items() if k not in ('seed', 'cbs', 'kwargs')})


def train(name, fold, seed, data='mnist'):
    "Train a run; its row of runs.csv, and its rows of epochs.csv."
    torch.set_num_threads(1)
    start,(step,change) = time.perf_counter(),experiments[name]
    with contextlib.redirect_stdout(io.StringIO()): learn = step.train(seed=seed, data=data, fold=fold or None, **change)
    epochs,run = report.history(learn),dict(zip(key, (name, fold, seed)))
    if data == 'mnist' and not_mnist in learn.dls.train_ds.name: raise RuntimeError('not MNIST')
    run.update(parameters=count(learn.model), seconds=round(time.perf_counter() - start), threads=torch.get_num_threads(), device=str(learn.dls.device),
               cpu=torch.backends.cpu.get_cpu_capability(), system=f'{platform.system()} {platform.machine()}', python=platform.python_version(),
               torch=torch.__version__, torchvision=torchvision.__version__, fastai=fastai.__version__)
    with learn.no_bar(), learn.no_logging():
        clean,(logits,labels) = learn.validate(dl=clean_train(learn.dls))[1],learn.get_preds()
    guess = logits.argmax(1)
    run.update(clean_accuracy=round(clean, 6), recipe=recipe(name),
               wrong=' '.join(f'{i}:{guess[i]}' for i in (guess != labels).nonzero().flatten().tolist()))
    return run, epochs.reset_index().assign(**{k: run[k] for k in key})


def table(name):
    "results/`name`.csv as it is written, all of it text."
    path = here/f'{name}.csv'
    return pd.read_csv(path, dtype=str, keep_default_na=False) if path.exists() else pd.DataFrame(columns=key, dtype=str)

def append(run, epochs):
    "Add a whole run to the tables. A run is whole once it is in runs.csv, which is replaced last; a killed recording leaves no others."
    with open(here/'.lock', 'w') as lock:  # one recording at a time
        fcntl.flock(lock, fcntl.LOCK_EX)
        runs,old = table('runs'),table('epochs').merge(table('runs')[key])
        if (runs[key] == [str(run[k]) for k in key]).all(axis=1).any(): return
        for name,rows in (('epochs', pd.concat([old, epochs[key + [c for c in epochs if c not in key]]])), ('runs', pd.concat([runs, pd.DataFrame([run])]))):
            report.write(partial(rows.to_csv, index=False), here/f'{name}.csv')


def main():
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument('names', nargs='+', choices=experiments, metavar='NAME', help=', '.join(experiments))
    cli.add_argument('--seeds', type=int, default=5, help='record seeds 0 to SEEDS-1 (default: 5)')
    cli.add_argument('--folds', action='store_true', help='six runs a seed, each evaluated on one held-out fold of the training images')
    cli.add_argument('--data', default='mnist', help='mnist, digits or a folder that holds MNIST/raw (default: mnist)')
    cli.add_argument('--jobs', type=int, default=os.cpu_count(), help='runs side by side on this machine (default: one per core)')
    cli.add_argument('--scheduler', help='address of a Dask scheduler, whose workers train in place of this machine')
    args = cli.parse_args()
    from dask.distributed import Client, as_completed
    commit = subprocess.run(['git', 'describe', '--always', '--dirty'], cwd=here, capture_output=True, text=True).stdout.strip()
    done = set(table('runs')[key].itertuples(index=False, name=None))
    todo = [o for seed in range(args.seeds) for name in args.names for fold in (range(1, 7) if args.folds else [0]) if (o := (name, fold, seed))
            and tuple(map(str, o)) not in done]
    print(f'{len(todo)} runs to record')
    with Client(args.scheduler) if args.scheduler else Client(n_workers=args.jobs, threads_per_worker=1, dashboard_address=None) as client:
        runs = client.map(train, *zip(*todo), data=args.data, pure=False)
        for future in progress_bar(as_completed(runs), total=len(runs)):
            run,epochs = future.result()
            append({**run, 'commit': commit}, epochs)


if __name__ == '__main__':
    import record  # Dask's workers import this module by name
    record.main()
