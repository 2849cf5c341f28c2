"Recordings: a run is recorded as it was, and a recording loses nothing."
import contextlib, os, re, signal, socket, subprocess, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd, psutil, pytest
from fastcore.script import CliError

import data, record
from conftest import offline, project
from experiments import key

readme = (project/'results'/'README.md').read_text(encoding='utf-8')

def train(seed, fold=0): return record.train('step3-4epochs', fold, seed, 'digits')

def test_a_run_is_recorded_as_it_was():
    (run,rows),(_,held_out) = train(0),train(0, fold=1)
    assert rows.valid_loss.iloc[-1] != held_out.valid_loss.iloc[-1]
    assert run['clean_accuracy'] != rows.valid_accuracy.iloc[-1]
    _,labels = data.load_digits()[1]
    for answer in run['wrong'].split():
        image,taken_for = map(int, answer.split(':'))
        assert labels[image] != taken_for

def test_two_threads_do_not_disturb_each_other():
    with ThreadPoolExecutor(2) as threads: together = [*threads.map(train, (0, 1))]
    for seed in (0, 1): assert together[seed][1].equals(train(seed)[1])

def test_what_cannot_be_recorded_is_not_trained(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr('dask.distributed.Client', lambda **kwargs: sys.exit())  # before anything is trained
    here = Path(os.path.relpath(record.here))
    for to,why in ((here, 'only MNIST'), (tmp_path/'none', 'No such'), (Path(__file__), 'Not a directory')):
        with pytest.raises(CliError, match=why): record.main('step1', data='digits', to=to)
    with pytest.raises(CliError, match="'step4' is none of step1"): record.main('step4')
    with pytest.raises(SystemExit): record.main('step1', folds=True, seeds=2, to=tmp_path)
    assert capsys.readouterr().out == '12 runs to record\n'
    monkeypatch.setenv('PATH', '')  # without git
    assert record.commit() == 'unknown'

def readme_commands(to):
    "The commands of results/README.md, for four epochs on the small digits."
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    digits = f'step3-4epochs --data digits --to {to}'
    text = readme.replace('NAME', digits).replace('step3 --seeds 20', digits)
    text = text.replace('8786', f'{port}').replace('HOST', '127.0.0.1').replace('FOLDER', f'{to}')
    return re.findall(r'\n    (.*)', text)

def end(process):
    "Kill a command and all that it started."
    with contextlib.suppress(ProcessLookupError): os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()

def test_the_commands_of_the_readme_survive_kills(tmp_path):
    "Of a recording, between its two files as well, and of one of a cluster's workers: every run is there once."
    env = {**os.environ, **offline, 'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}'}
    env.pop('PYTHONPATH', None)
    started = []
    def start(line):
        started.append(subprocess.Popen(line, shell=True, cwd=project, env=env, start_new_session=True, text=True,
                                        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL))
        return started[-1]
    run,rows = train(0)  # what a killed recording left: a whole run, and half of another
    record.append(tmp_path, {**run, 'commit': 'none'}, pd.concat([rows, rows.iloc[:1].assign(seed=1)]))
    on_folds,scheduler,worker,recording = readme_commands(tmp_path)
    try:
        killed = start(on_folds)
        assert killed.stdout.readline() == '12 runs to record\n'
        assert '; 1 of 12 runs, about 0 h' in killed.stdout.readline()
        end(killed)
        start(scheduler)
        workers,recording = start(worker),start(recording)
        assert recording.stdout.readline() == '4 runs to record\n'
        assert '; 1 of 4 runs, about 0 h' in recording.stdout.readline()
        for process in psutil.Process(workers.pid).children(recursive=True):
            if 'spawn_main' in f'{process.cmdline()}': one_of_them = process
        one_of_them.kill()
        assert recording.wait(100) == 0
    finally:
        for process in started: end(process)
    found = pd.read_csv(tmp_path/'runs.csv')
    assert sorted(found.seed[found.fold == 0]) == [0, 1, 2, 3, 4]
    size = pd.read_csv(tmp_path/'epochs.csv').groupby(key).size()
    assert len(size) == len(found)
    assert (size == 4).all()
