"""Records the evidence: trains experiments on MNIST, one thread a run, and appends every whole run to results/epochs.csv and runs.csv.

    python results/record.py step3                     # seeds 0 to 4 of step 3, those not recorded yet
    python results/record.py step3 --seeds 20 --jobs 8
    python results/record.py step3 --folds --seeds 2   # on the six held-out folds of the training images: how a recipe is chosen
    python results/record.py step3 --scheduler tcp://host:8786   # on the workers of a Dask cluster

An interrupted recording continues where it was. Delete a run's rows in runs.csv to record it anew.
"""
import argparse, contextlib, hashlib, inspect, io, json, os, platform, re, subprocess, sys, time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

here = Path(__file__).resolve().parent
sys.path.insert(0, str(here.parent))

import report, step1, step2, step3
import fastai, pandas as pd, torch, torchvision
from filelock import FileLock
from torch import nn

from data import clean_train
from models import Model_1, Model_2, Model_3, Model_4, Model_5, conv, count, head

key = ['experiment', 'fold', 'seed']  # a run; fold 0: trained on all training images, evaluated on the test images


def changed(net, layers):
    "`net` with `layers` (index -> layer) in place of its own."
    for i,layer in layers.items(): net[i] = layer
    return net

def no_batch_norm():
    "Model_1 without batch norm; its convolutions have a bias in its place."
    net = Model_1()
    for i in (0, 1, 3, 4, 6, 7):
        c = net[i][0]
        net[i][0],net[i][1] = nn.Conv2d(c.in_channels, c.out_channels, 3, padding=c.padding),nn.Identity()
    return net

def relu(model):
    "`model` with ReLU."
    net = model()
    for i in range(1, 7): net[i][2 + isinstance(net[i][1], nn.MaxPool2d)] = nn.ReLU()
    return net

def average_pooling(model): return changed(model(), {7: nn.AdaptiveAvgPool2d(1)})  # plain, global

def large_kernel():
    "Model_2 with step 1's head: one large kernel from the last maps to ten logits."
    return changed(Model_2(), {7: nn.Conv2d(32, 10, 5), 9: nn.Identity()})

def pool(by):
    "Model_2 with each max-pooling one layer earlier (`by` -1; the last map is 4×4) or later (1)."
    net = Model_2()
    for i in (2, 4): net[i+by].insert(1, net[i].pop(1))
    if by < 0: net[7] = nn.Conv2d(32, 32, 4, groups=32, bias=False)
    return net

def uncropped():
    "Model_3 on all 28×28 pixels."
    return changed(Model_3(), {0: nn.Identity(), 7: nn.Conv2d(32, 32, 6, groups=32, bias=False)})

def plain_filters(p=.05):
    "Model_2's build with ordinary convolutions, and fewer channels to keep the budget."
    return nn.Sequential(nn.ZeroPad2d(-2), conv(1, 8, pad=0, p=p), conv(8, 8, pad=0, pool=True, p=p), conv(8, 8, p=p),
                         conv(8, 16, pool=True, p=p), conv(16, 16, p=p), conv(16, 16, p=p), *head(16, 5))

def constant(epochs=step3.epochs, lr=3e-3, cbs=None, **kwargs):
    "Step 3's `train` at a constant learning rate (and beta1), as in steps 1 and 2."
    learn = step3.learner(**kwargs)
    learn.fit(epochs, lr, cbs=cbs)
    return learn

step3_constant = SimpleNamespace(__name__='step3', target=step3.target, learner=step3.learner, train=constant)
# What step 3's numbers could be instead, for the first rule of README.md. Those from `bs` on were fixed on 26 November 2026 before their
# runs on the folds. As so many are tried at once, one that passes must pass again with seeds 2 and 3.
values = dict(wd=('weight decay', .01, .3), lr=('peak rate', 5e-3, 3e-2), bs=('batches of', 128, 512), pct_start=('warm-up', .05, .2),
              ema=('EMA', 4, 18), degrees=('degrees', 4, 16), shift=('shift', .6, 2.4), scale=('scale', .03, .12),
              shear=('shear', .1, .4), elastic=('elastic', .2, .8))

def value_of(name): return {**vars(step3), **step3.warp}[name]
def with_value(name, value): return dict(warp={**step3.warp, name: value}) if name in step3.warp else {name: value}

still = dict.fromkeys(step3.warp, 0)  # no warp at all

# Each experiment: the step, what is changed in it (arguments of its `train`), and the change in words.
experiments = {
    'step1': (step1, {}, ''),
    'step2': (step2, {}, 'all of step 2, against step 1'),
    'step3': (step3, {}, 'all of step 3, against step 2'),
    'step3-8epochs': (step3, dict(epochs=8), ''),
    'step3-4epochs': (step3, dict(epochs=4), ''),
    'step3-3epochs': (step3, dict(epochs=3), ''),
    'step3-GPU': (step3, dict(device='cuda'), ''),
    'step3-Model_4': (step3, dict(model=Model_4), ''),
    'step3-Model_5': (step3, dict(model=Model_5), ''),
    # Candidates for Model_5: the smallest with a mean accuracy of 99.34% or more on the six folds (seed 0) is taken. That is 99.40%, plus
    # 0.06 for the spread of the last epochs, less the 0.12 that step 3's seeds 0 to 4 are lower on the folds. Fixed before the runs; 224444
    # and 224443 were added when 223444 had failed; the last eight on 26 November 2026, with a further condition: the mean of seeds 0 and 1.
    **{f'step3-{filters}': (step3, dict(model=partial(Model_2, tuple(map(int, filters)), 0.)), '') for filters in
       ('224444', '223444', '224443', '223443', '223344', '222345', '224335', '233344', '224344', '224434', '223435', '223354')},
    'step1-without-batch-norm': (step1, dict(model=no_batch_norm), 'without batch norm'),
    'step1-half-channels':      (step1, dict(model=partial(Model_1, (4, 4, 4, 6, 4, 4))), 'half the channels'),
    'step1-twice-channels':     (step1, dict(model=partial(Model_1, (16, 16, 16, 24, 16, 16))), 'twice the channels'),
    'step1-lr-0.001': (step1, dict(lr=1e-3), 'a third of the learning rate'),
    'step1-lr-0.009': (step1, dict(lr=9e-3), 'three times the learning rate'),
    'step2-plain-filters':   (step2, dict(model=plain_filters), 'ordinary convolutions, fewer channels'),
    'step2-average-pooling': (step2, dict(model=partial(average_pooling, Model_2)), 'plain global average pooling'),
    'step2-large-kernel':    (step2, dict(model=large_kernel), 'the large kernel of step 1'),
    'step2-pool-earlier':    (step2, dict(model=partial(pool, -1)), 'pooling one layer earlier'),
    'step2-pool-later':      (step2, dict(model=partial(pool, 1)), 'pooling one layer later'),
    'step2-without-dropout': (step2, dict(model=Model_3), 'without dropout'),
    'step2-ReLU':            (step2, dict(model=partial(relu, Model_2)), 'ReLU for SiLU'),
    'constant-0.003': (step3_constant, {}, 'a constant learning rate of 0.003'),
    'constant-0.006': (step3_constant, dict(lr=6e-3), 'a constant learning rate of 0.006'),
    'without-augmentation': (step3, dict(warp=still), 'without augmentation'),
    'elastic-only':    (step3, dict(warp={**still, 'elastic': step3.warp['elastic']}), 'the elastic distortion only'),
    'without-elastic': (step3, dict(warp={**step3.warp, 'elastic': 0}), 'without the elastic distortion'),
    'without-EMA':     (step3, dict(ema=0), 'without EMA'),
    'with-dropout':    (step3, dict(model=Model_2), 'with the dropout of step 2'),
    'without-crop':    (step3, dict(model=uncropped), 'without the crop to 24×24'),
    'ReLU':            (step3, dict(model=partial(relu, Model_3)), 'ReLU for SiLU, in step 3'),
    'average-pooling': (step3, dict(model=partial(average_pooling, Model_3)), 'plain global average pooling, in step 3'),
    **{f'{name}-{value}': (step3, with_value(name, value), f'{what} {value} for {value_of(name)}')
       for name,(what,*others) in values.items() for value in others},
}
# Parts that cost code, left out: the second rule of README.md is for these.
parts = ['step2-without-dropout', 'without-EMA', 'without-elastic', 'without-crop', 'ReLU', 'average-pooling']


def recipe(name):
    """All that makes experiment `name` what it is, as JSON: the arguments of its step's `learner` and `train`, and a digest of the net.
    Runs up to commit 4afa26d had an `ema` of 0.998, a cap on the decay that none reached. Put as 9 since: the numbers are bit-identical.
    Runs up to commit 29f0bd0 named the function that made the net; here it is the net's class. The digest of `step3-GPU`, of PyTorch 2.11,
    which prints batch norm otherwise, is put as 2.15 prints it."""
    step,change,_ = experiments[name]
    found = {o.name: o.default for f in (step.learner, step.train) for o in inspect.signature(f).parameters.values()} | change
    net = found['model']()
    found['model'] = f'{type(net).__name__} {hashlib.md5(str(net).encode()).hexdigest()[:8]}'
    return json.dumps({k: v for k,v in found.items() if k not in ('seed', 'pretrained', 'cbs', 'kwargs')})


def processor():
    "The model of the processor, as Linux names it: bits are the same on the same model only."
    try: info = Path('/proc/cpuinfo').read_text().split('\n\n')[0]
    except OSError: info = ''
    return ' '.join(re.findall(r'^(?:cpu family|model|model name|stepping)\s*: (.*)', info, re.M)) or platform.processor()


def train(name, fold, seed, data='mnist'):
    "Train a run; its row of runs.csv, and its rows of epochs.csv."
    torch.set_num_threads(1)
    start,(step,change,_) = time.perf_counter(),experiments[name]
    with contextlib.redirect_stdout(io.StringIO()): learn = step.train(seed=seed, data=data, fold=fold or None, **change)
    seconds = round(time.perf_counter() - start)
    epochs = pd.concat({(name, fold, seed): report.history(learn)}, names=key).reset_index()
    with learn.no_bar(), learn.no_logging(): clean,(logits,labels) = learn.validate(dl=clean_train(learn.dls))[1],learn.get_preds()
    guess = logits.argmax(1)
    run = dict(zip(key, (name, fold, seed)), parameters=count(learn.model), seconds=seconds, threads=torch.get_num_threads(),
               device=torch.cuda.get_device_name() if learn.dls.device.type == 'cuda' else 'cpu',
               cpu=torch.backends.cpu.get_cpu_capability(), processor=processor(), system=platform.platform(terse=True), python=platform.python_version(),
               torch=torch.__version__, torchvision=torchvision.__version__, fastai=fastai.__version__,
               clean_accuracy=round(clean, 6), recipe=recipe(name),
               wrong=' '.join(f'{i}:{guess[i]}' for i in (guess != labels).nonzero().flatten().tolist()))
    return run, epochs


def table(path):
    "A table as it is written, all of it text; empty where there is none."
    return pd.read_csv(path, dtype=str, keep_default_na=False) if path.exists() else pd.DataFrame(columns=key, dtype=str)

def append(to, run, epochs):
    "Add a run to the tables in folder `to`. It is whole once it is in runs.csv, replaced last: a killed recording leaves no other."
    with FileLock(to/'.lock'):  # one recording at a time
        runs = table(to/'runs.csv')
        if (runs[key] == [str(run[k]) for k in key]).all(axis=1).any(): return
        for name,old,new in (('epochs', table(to/'epochs.csv').merge(runs[key]), epochs), ('runs', runs, pd.DataFrame([run]))):
            report.write(partial((pd.concat([old, new]) if len(old) else new).to_csv, index=False), to/f'{name}.csv')


def main():
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument('names', nargs='+', choices=experiments, metavar='NAME', help=', '.join(experiments))
    cli.add_argument('--seeds', type=int, default=5, help='record seeds 0 to SEEDS-1 (default: 5)')
    cli.add_argument('--folds', action='store_true', help='six runs a seed, each evaluated on one held-out fold of the training images')
    cli.add_argument('--data', default='mnist', help='mnist, digits or a folder that holds MNIST/raw (default: mnist)')
    cli.add_argument('--to', type=Path, default=here, help='folder of the tables (default: results)')
    cli.add_argument('--jobs', type=int, default=os.cpu_count(), help='runs side by side on this machine (default: one per core)')
    cli.add_argument('--scheduler', metavar='ADDRESS', help='a Dask scheduler, whose workers train in place of this machine')
    args = cli.parse_args()
    if args.data in ('auto', 'digits') and args.to.resolve() == here: cli.error('only MNIST is recorded here: give another folder by --to')
    from dask.distributed import Client, as_completed
    commit = subprocess.run(['git', 'describe', '--always', '--dirty'], cwd=here, capture_output=True, text=True).stdout.strip()
    done = set(table(args.to/'runs.csv')[key].itertuples(index=False, name=None))
    todo = [(name, fold, seed) for seed in range(args.seeds) for name in args.names for fold in (range(1, 7) if args.folds else [0])]
    todo = [run for run in todo if tuple(map(str, run)) not in done]
    print(f'{len(todo)} runs to record', flush=True)
    with Client(args.scheduler) if args.scheduler else Client(n_workers=args.jobs, threads_per_worker=1, dashboard_address=None) as client:
        futures = [client.submit(train, *run, args.data, pure=False) for run in todo]
        for _,(run,epochs) in as_completed(futures, with_results=True):
            append(args.to, {**run, 'commit': commit}, epochs)
            print(*(run[k] for k in key), f'{epochs.valid_accuracy.iloc[-1]:.2%}', flush=True)


if __name__ == '__main__':
    import record  # Dask's workers import this module by name
    record.main()
