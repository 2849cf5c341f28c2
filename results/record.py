"""Records the evidence: trains experiments on MNIST, one thread a run, and adds each run to epochs.csv and runs.csv.

    python results/record.py step3                     # seeds 0 to 4 of step 3, those not recorded yet
    python results/record.py step3 --seeds 20
    python results/record.py step3 --folds --seeds 2   # on the six held-out folds of the training images
    python results/record.py step3 --scheduler tcp://host:8786   # on the workers of a Dask cluster

An interrupted recording continues where it was. Delete a run's rows in runs.csv to record it anew.
"""
import contextlib, io, os, platform, re, subprocess, tempfile, threading, time
from functools import partial
from itertools import product
from pathlib import Path

from experiments import experiments, here, key, recipe
import report
import dask, fastai, pandas as pd, torch, torchvision
from dask.distributed import Client, as_completed
from fastcore.script import CliError, call_parse
from filelock import FileLock
from torch.nn import functional as F

from data import DigitImages
from models import count


def processor():
    "The model of the processor, as Linux names it: bits are the same on the same model only."
    cpuinfo = Path('/proc/cpuinfo')
    info = cpuinfo.read_text() if cpuinfo.exists() else ''
    names = re.findall(r'^(?:cpu family|model|model name|stepping)\s*: (.*)', info, re.M)
    return ' '.join(names[:4]) or platform.processor()

def git(*words):
    "What git says of this folder. A hook sets GIT_DIR and the like, which may point to another repository."
    env = {name: value for name,value in os.environ.items() if not name.startswith('GIT_')}
    return subprocess.check_output(['git', *words], cwd=here, env=env, stderr=subprocess.DEVNULL, text=True).strip()

def commit():
    "The commit of this code, `-dirty` if the code was changed since; `unknown` where git does not know this file."
    try:
        git('ls-files', '--error-unmatch', 'record.py')
        name,changed = git('describe', '--always'),git('diff', '--name-only', 'HEAD', ':/*.py')
    except (OSError, subprocess.CalledProcessError): return 'unknown'
    return f'{name}-dirty' if changed else name

version = commit()  # of what this process trains by: a file may change later, and workers may have other code


def shifted_accuracy(learn):
    "The accuracy of nine answers averaged: to each image as it is, and shifted by one pixel in all eight directions."
    test,total = learn.dls.valid_ds,0
    for i,j in product((-1, 0, 1), repeat=2):
        shifted = DigitImages(F.pad(test.x, (i, -i, j, -j)), test.y)
        answers,labels = learn.get_preds(dl=learn.dls.valid.new(shifted))
        total += answers
    return (total.argmax(1) == labels).float().mean().item()


one_at_a_time = threading.Lock()  # threads share torch's random numbers, so two runs at once would disturb each other

def train(name, fold, seed, data='mnist'):
    "Train a run; its row of runs.csv, and its rows of epochs.csv."
    with one_at_a_time, contextlib.redirect_stdout(io.StringIO()):
        torch.set_num_threads(1)
        step,arguments,_ = experiments[name]
        start = time.perf_counter()
        learn = step.train(seed=seed, data=data, fold=fold, **arguments)
        seconds = round(time.perf_counter() - start)
        history = report.history(learn)
        if len(history) < learn.n_epoch: raise FloatingPointError(
            f'the loss is not a finite number after epoch {len(history)}')
        epochs = pd.concat({(name, fold, seed): history}, names=key).reset_index()
        with learn.no_bar(), learn.no_logging():
            with learn.dls.train_ds.set_split_idx(1): clean = learn.validate(0)[1]
            _,labels,guess = learn.get_preds(with_decoded=True)
            shifted = shifted_accuracy(learn)
        wrong = (guess != labels).nonzero().flatten().tolist()
        run = dict(
            experiment=name, fold=fold, seed=seed, parameters=count(learn.model),
            seconds=seconds, threads=torch.get_num_threads(),
            device=torch.cuda.get_device_name() if learn.dls.device.type == 'cuda' else 'cpu',
            cpu=torch.backends.cpu.get_cpu_capability(), processor=processor(),
            system=platform.platform(terse=True), python=platform.python_version(),
            torch=torch.__version__, torchvision=torchvision.__version__, fastai=fastai.__version__,
            clean_accuracy=round(clean, 6), shifted_accuracy=round(shifted, 6),
            recipe=recipe(name, data), commit=version,
            wrong=' '.join(f'{i}:{guess[i]}' for i in wrong))
        return run, epochs


def read_tables(to):
    "The tables of runs and of epochs in folder `to`, all of it text; empty where there are none."
    for name,column in ('runs', 'recipe'), ('epochs', 'epoch'):
        path,needed = to/f'{name}.csv',[*key, column]
        table = pd.DataFrame(columns=needed, dtype=str)
        try:
            if path.exists(): table = pd.read_csv(path, dtype=str, keep_default_na=False)
            table[needed]  # a KeyError where one is missing
        except (OSError, ValueError, KeyError) as e: raise CliError(
            f'{path} is not a table of recorded runs ({e}): move it away, or give another folder by --to.') from None
        yield table

def refuse_others(recipes, runs, to):
    "Under one name there is one recipe: `recipes`, name -> recipe, is to agree with the `runs` in folder `to`."
    for run in runs.itertuples():
        if recipes.get(run.experiment, run.recipe) != run.recipe: raise CliError(
            f'{to/"runs.csv"} has {run.experiment} by another recipe or on other data: delete these rows, '
            'or give another folder by --to.')

def append(to, run, epochs):
    "Add a run to the tables in folder `to`. Only what is in runs.csv, written last, counts: a recording may be killed."
    with FileLock(to/'.lock'):  # one recording at a time
        runs,whole = read_tables(to)
        refuse_others({run['experiment']: run['recipe']}, runs, to)
        new = pd.DataFrame([run]).astype(str)
        if len(runs.merge(new, on=key)): return  # another recording was faster
        for name,rows in ('epochs', [whole.merge(runs[key]), epochs.astype(str)]), ('runs', [runs, new]):
            report.write(partial(pd.concat(rows).to_csv, index=False), to/f'{name}.csv')

def connect(scheduler):
    "Dask's workers: those of a scheduler, or processes of this machine, one a core."
    if not scheduler:
        # Dask lets workers give memory back at once: then a run takes twice as long, most of it page faults. And near a
        # limit of its memory a worker would stop without a word.
        dask.config.set({'distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_': None})
        return Client(threads_per_worker=1, memory_limit=0, dashboard_address=':0')
    try: client = Client(scheduler)
    except (OSError, ValueError) as e: raise CliError(f'--scheduler: {e}. Nothing was trained.') from None
    if not client.nthreads(): print('The scheduler has no workers yet: waiting for the first', flush=True)
    return client


def main(
    *names:str,         # Experiments, as the table in results/experiments.py names them
    seeds:int=5,        # Record seeds 0 to SEEDS-1
    folds:bool=False,   # Six runs a seed, each evaluated on one held-out fold of the training images
    data:str='mnist',   # mnist, digits or a folder that holds MNIST/raw
    to:Path=here,       # Folder of the tables
    scheduler:str=None  # Address of a Dask scheduler, whose workers train instead of this machine
):
    "Train experiments, those that are not recorded yet, and record each run when it has finished."
    if not names: raise CliError(f'Which experiments? There are {", ".join(experiments)}.')
    for name in names:
        if name not in experiments: raise CliError(f'{name!r} is none of {", ".join(experiments)}.')
    if data == 'auto': raise CliError('--data auto: say which, mnist or digits.')
    if data == 'digits' and to.resolve() == here:
        raise CliError('only MNIST is recorded here: give another folder by --to')
    try:  # what a recording needs after the training
        tempfile.TemporaryFile(dir=to).close()
        with FileLock(to/'.lock'): pass
    except OSError as e: raise CliError(f'--to {to}: {e.strerror}. Nothing was trained.') from None
    recipes = {name: recipe(name, data) for name in names}
    recorded,_ = read_tables(to)
    refuse_others(recipes, recorded, to)

    done = recorded.set_index(key).index
    wanted = product(range(seeds), recipes, range(1, 7) if folds else [0])
    todo = [(name, fold, seed) for seed,name,fold in wanted if (name, str(fold), str(seed)) not in done]
    print(f'{len(todo)} runs to record', flush=True)
    failed = []
    with connect(scheduler) as client:
        runs = {client.submit(train, *run, data, pure=False): run for run in todo}
        for n,future in enumerate(as_completed(runs), 1):
            try:
                run,epochs = future.result()
                append(to, run, epochs)
                said = f'{epochs.valid_accuracy.iloc[-1]:.2%}'
            except Exception as e:
                said = f'not recorded: {" ".join(str(e).split()) or repr(e)}'
                failed.append(f'{runs[future]} {said}')
            print(*runs[future], f'{said}; {n} of {len(todo)} runs', flush=True)
    if failed: raise CliError('\n'.join(failed))


if __name__ == '__main__':
    import record  # Dask's workers import this module by name
    call_parse(record.main)
