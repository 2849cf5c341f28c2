"""Records the evidence: trains experiments on MNIST, one thread a run, and adds each run to epochs.csv and runs.csv.

    python results/record.py step3                     # seeds 0 to 4 of step 3, those not recorded yet
    python results/record.py step3 --seeds 20
    python results/record.py step3 --folds --seeds 2   # on the six held-out folds of the training images
    python results/record.py step3 --scheduler tcp://host:8786   # on the workers of a Dask cluster

An interrupted recording continues where it was. Delete a run's rows in runs.csv to record it anew.
"""
import contextlib, io, platform, re, subprocess, tempfile, threading, time
from functools import partial
from itertools import product
from pathlib import Path

from experiments import experiments, here, key, recipe
import report
import fastai, pandas as pd, torch, torchvision
from fastcore.script import CliError, call_parse
from filelock import FileLock

from data import clean_train
from models import count


def processor():
    "The model of the processor, as Linux names it: bits are the same on the same model only."
    try: info = Path('/proc/cpuinfo').read_text().split('\n\n')[0]
    except OSError: info = ''
    names = re.findall(r'^(?:cpu family|model|model name|stepping)\s*: (.*)', info, re.M)
    return ' '.join(names) or platform.processor()

def commit():
    "The commit of this code; `unknown` without git."
    status,name = subprocess.getstatusoutput(f'git -C "{here}" describe --always --dirty')
    return 'unknown' if status else name


def train_alone(name, fold, seed, data):
    torch.set_num_threads(1)
    step,arguments,_ = experiments[name]
    start = time.perf_counter()
    learn = step.train(seed=seed, data=data, fold=fold or None, **arguments)
    seconds = round(time.perf_counter() - start)
    epochs = pd.concat({(name, fold, seed): report.history(learn)}, names=key).reset_index()
    with learn.no_bar(), learn.no_logging():
        clean = learn.validate(dl=clean_train(learn.dls))[1]
        logits,labels = learn.get_preds()
    guess = logits.argmax(1)
    wrong = (guess != labels).nonzero().flatten().tolist()
    run = dict(
        experiment=name, fold=fold, seed=seed, parameters=count(learn.model),
        seconds=seconds, threads=torch.get_num_threads(),
        device=torch.cuda.get_device_name() if learn.dls.device.type == 'cuda' else 'cpu',
        cpu=torch.backends.cpu.get_cpu_capability(), processor=processor(),
        system=platform.platform(terse=True), python=platform.python_version(),
        torch=torch.__version__, torchvision=torchvision.__version__, fastai=fastai.__version__,
        clean_accuracy=round(clean, 6), recipe=recipe(name), wrong=' '.join(f'{i}:{guess[i]}' for i in wrong))
    return run, epochs

one_at_a_time = threading.Lock()  # threads share torch's random numbers, so two runs at once would disturb each other

def train(name, fold, seed, data='mnist'):
    "Train a run; its row of runs.csv, and its rows of epochs.csv."
    with one_at_a_time, contextlib.redirect_stdout(io.StringIO()): return train_alone(name, fold, seed, data)


def table(path):
    "A table as it is written, all of it text; empty where there is none."
    if not path.exists(): return pd.DataFrame(columns=key, dtype=str)
    return pd.read_csv(path, dtype=str, keep_default_na=False)

def append(to, run, epochs):
    "Add a run to the tables in folder `to`. Only what is in runs.csv, written last, counts: a recording may be killed."
    with FileLock(to/'.lock'):  # one recording at a time
        runs = table(to/'runs.csv')
        same = runs[key] == [str(run[name]) for name in key]
        if same.all(axis=1).any(): return
        whole = table(to/'epochs.csv').merge(runs[key])
        for name,old,new in ('epochs', whole, epochs), ('runs', runs, pd.DataFrame([run])):
            report.write(partial(pd.concat([old, new.astype(str)]).to_csv, index=False), to/f'{name}.csv')


def left(start, n, of):
    "What is shown after `n` runs `of` all."
    seconds = (time.perf_counter() - start)/n*(of - n)
    hours,minutes = divmod(round(seconds/60), 60)
    return f'{n} of {of} runs, about {hours} h {minutes} min left'

def main(
    *names:str,         # Experiments, as the table in results/record.py names them
    seeds:int=5,        # Record seeds 0 to SEEDS-1
    folds:bool=False,   # Six runs a seed, each evaluated on one held-out fold of the training images
    data:str='mnist',   # mnist, digits or a folder that holds MNIST/raw
    to:Path=here,       # Folder of the tables
    scheduler:str=None  # Address of a Dask scheduler, whose workers train instead of this machine
):
    "Train experiments, those that are not recorded yet, and record each run when it has finished."
    from dask.distributed import Client, as_completed
    for name in names:
        if name not in experiments: raise CliError(f'{name!r} is none of {", ".join(experiments)}.')
    if data in ('auto', 'digits') and to.resolve() == here:
        raise CliError('only MNIST is recorded here: give another folder by --to')
    try: tempfile.TemporaryFile(dir=to).close()
    except OSError as e: raise CliError(f'--to {to}: {e.strerror}. Nothing was trained.') from None

    done = set(table(to/'runs.csv')[key].itertuples(index=False, name=None))
    wanted = product(range(seeds), names, range(1, 7) if folds else [0])
    todo = [(name, fold, seed) for seed,name,fold in wanted if (name, str(fold), str(seed)) not in done]
    print(f'{len(todo)} runs to record', flush=True)
    version,start = commit(),time.perf_counter()
    with Client(scheduler) if scheduler else Client(threads_per_worker=1, dashboard_address=None) as client:
        futures = [client.submit(train, *run, data, pure=False) for run in todo]
        for n,future in enumerate(as_completed(futures), 1):
            run,epochs = future.result()
            append(to, {**run, 'commit': version}, epochs)
            last = epochs.iloc[-1]
            print(*last[key], f'{last.valid_accuracy:.2%};', left(start, n, len(todo)), flush=True)


if __name__ == '__main__':
    import record  # Dask's workers import this module by name
    call_parse(record.main)
