"Recordings: a run is recorded as it was, and a recording loses nothing."
import os, re, runpy, shlex, signal, socket, subprocess, sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from unittest.mock import Mock

import dask, pandas as pd, psutil, pytest, torch
from dask.distributed import Client, as_completed
from fastcore.script import CliError
from torch import nn

import data, record
from conftest import close, project
from experiments import BlurPool, experiment, experiments, key, recipe, step1, step3_constant

@pytest.fixture(autouse=True)
def short(monkeypatch): monkeypatch.setitem(experiments, 'short', experiment(step1, epochs=2))

def train(seed, fold=0, name='short'): return record.train(name, fold, seed, 'digits')

def test_a_run_is_recorded_as_it_was():
    (run,rows),(_,held_out) = train(0),train(0, fold=1)
    assert rows.valid_loss.iloc[-1] != held_out.valid_loss.iloc[-1]
    assert run['clean_accuracy'] != rows.valid_accuracy.iloc[-1]
    assert run['commit'] == record.version
    _,labels = data.small_digits()[1]
    for answer in run['wrong'].split():
        image,taken_for = map(int, answer.split(':'))
        assert labels[image] != taken_for

def test_two_threads_do_not_disturb_each_other():
    with ThreadPoolExecutor(2) as threads: (_,rows),_ = threads.map(train, (0, 1))
    assert rows.equals(train(0)[1])

@pytest.fixture
def untrained(monkeypatch):
    "A recording exits before it trains."
    monkeypatch.setattr('record.connect', sys.exit)

def refused(why, *names, **options):
    with pytest.raises(CliError, match=why): record.main(*names, **options)

def test_what_cannot_be_recorded_is_not_trained(monkeypatch, tmp_path):
    refused('Which')
    refused('only MNIST', 'step1', data='digits', to=record.here/'..'/'results')
    refused('mnist or digits', 'step1', data='auto', to=tmp_path)
    refused('No such', 'step1', to=tmp_path/'none')
    refused("'step4' is none of step1", 'step4')
    with dask.config.set({'distributed.comm.timeouts.connect': '1s'}):
        refused('trying to connect', 'step1', to=tmp_path, scheduler='tcp://127.0.0.1:9')
    for name,content in ('epochs', ''), ('runs', 'experiment,fold,seed'):
        (tmp_path/f'{name}.csv').write_text(content)
        refused(f'{name}.csv is not a table', 'step1', to=tmp_path)
    monkeypatch.setattr('fcntl.flock', Mock(side_effect=OSError(37, 'No locks available')))
    refused('No locks', 'step1', to=tmp_path)

def test_one_name_is_one_recipe_on_one_data_set(monkeypatch, tmp_path):
    record.append(tmp_path, *train(0))
    why = 'has short by another recipe .* delete these rows, or .* --to'
    refused(why, 'short', to=tmp_path)  # on MNIST
    monkeypatch.setitem(experiments, 'short', experiment(step1, epochs=1))
    refused(why, 'short', data='digits', to=tmp_path)
    with pytest.raises(CliError, match=why): record.append(tmp_path, *train(1))
    assert recipe('step1', 'a folder of MNIST') == recipe('step1')

def test_a_run_that_fails_does_not_lose_the_others(monkeypatch, tmp_path):
    "And little memory does not stop a recording."
    monkeypatch.setattr('distributed.system.MEMORY_LIMIT', 10**6)
    monkeypatch.setattr('record.Client', partial(Client, processes=False))
    monkeypatch.setattr('record.as_completed', partial(as_completed, timeout=100))
    monkeypatch.setitem(experiments, 'diverges', experiment(step3_constant, lr=1e20, epochs=2))
    monkeypatch.setitem(experiments, 'breaks', experiment(step1, device='none'))
    why = r"'diverges', 0, 0\) not recorded: the loss .* epoch 0\n.*'breaks', 0, 0\) not recorded: Expected one of cpu"
    for _ in range(2):  # a repeat ends the same way
        refused(why, 'diverges', 'breaks', 'short', seeds=1, data='digits', to=tmp_path)
        assert [*pd.read_csv(tmp_path/'runs.csv').experiment] == ['short']
    assert not dask.config.get('distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_')

def test_the_commit_is_that_of_tracked_code(monkeypatch, tmp_path):
    monkeypatch.setattr(record, 'here', tmp_path)
    shell = partial(subprocess.run, shell=True, cwd=tmp_path, check=True)
    shell('git init -q && git config user.name a && git config user.email a && touch record.py')
    shell('git commit -qm "of a repository around the code" --allow-empty')
    assert record.commit() == 'unknown'
    shell('git add . && git commit -qm "of the code"')
    monkeypatch.setenv('GIT_DIR', 'elsewhere')  # as in a hook
    assert re.fullmatch('[0-9a-f]{7,}', record.commit())
    shell('echo changed > record.py')
    assert record.commit().endswith('-dirty')
    monkeypatch.setenv('PATH', '')  # without git
    assert record.commit() == 'unknown'

@pytest.mark.parametrize('width', [10, 20])
def test_blurred_pooling(width):
    "Two averages of two are a binomial blur, too."
    x = torch.randn(2, 3, width, width)
    pooled = nn.Sequential(nn.MaxPool2d(2, 1), nn.AvgPool2d(2, 1, 1), nn.AvgPool2d(2))(x)
    blurred = BlurPool()
    assert close(blurred(x), pooled)
    turned = x.rot90(1, (2, 3))
    assert close(blurred(turned), pooled.rot90(1, (2, 3)))

def readme_commands(to):
    "The commands of results/README.md, for four epochs on the small digits."
    with socket.create_server(('127.0.0.1', 0)) as free: port = free.getsockname()[1]
    digits = f'step3-4epochs --data digits --to {to}'
    text = (project/'results'/'README.md').read_text(encoding='utf-8')
    text = text.replace('NAME', digits).replace('step3 --seeds 20', f'{digits} --seeds 4')
    text = text.replace('8786', f'{port}').replace('HOST', '127.0.0.1').replace('--nworkers 2', '--nworkers 1')
    return re.findall(r'\n    (.*)', text.replace('python ', f'{sys.executable} '))

def test_the_command_on_folds(untrained, monkeypatch, tmp_path, capsys):
    "What it would train."
    line,*_ = readme_commands(tmp_path)
    argv = shlex.split(line)[1:]
    monkeypatch.setattr('sys.argv', argv)
    with pytest.raises(SystemExit): runpy.run_path(project/argv[0], run_name='__main__')
    assert capsys.readouterr().out == '12 runs to record\n'

def test_the_commands_for_a_cluster_survive_kills(tmp_path):
    "Of a recording, between its two files as well, and of one of the workers: every run is there once."
    run,rows = train(0, name='step3-4epochs')  # what a killed recording left: a whole run, and half of another
    record.append(tmp_path, run, pd.concat([rows, rows.iloc[:1].assign(seed=1)]))
    start = partial(subprocess.Popen, shell=True, cwd=project, process_group=0, text=True, stdout=subprocess.PIPE)
    _,scheduler,memory,workers,recording = readme_commands(tmp_path)
    started = [start(scheduler), start(recording)]
    _,recording = started
    try:
        assert recording.stdout.readline() == '3 runs to record\n'
        assert 'no workers yet' in recording.stdout.readline()
        started.append(start(f'{memory}; {workers}'))
        assert recording.stdout.readline().endswith('; 1 of 3 runs\n')
        psutil.Process(started[-1].pid).children(recursive=True)[-1].kill()  # what it started last is a worker
        assert recording.wait(300) == 0
    finally:
        for process in started:
            if process.poll() is None: os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert sorted(pd.read_csv(tmp_path/'runs.csv').seed) == [0, 1, 2, 3]
    assert [*pd.read_csv(tmp_path/'epochs.csv').groupby(key).size()] == [4]*4
