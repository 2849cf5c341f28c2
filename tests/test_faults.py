"Nothing lost, nothing silent: Ctrl-C, lost readers, full disks, NaN losses, options that make no sense."
import contextlib, errno, io, os, re, runpy, signal, sys
from pathlib import Path
from unittest.mock import Mock

import pandas as pd
import pytest
from fastai.vision.all import plt
from fastcore.script import CliError
from torch import nn

import models, report, step1
from conftest import project

draw_png = report.draw_png  # before `no_pictures` takes it away
folder = Path('runs/step1-epochs2-not-MNIST')

@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch, no_pictures): monkeypatch.chdir(tmp_path)

def main(**kwargs):
    "Step 1's command in this process, on the small digits: its exit status, or its message."
    try: return step1.main(**{'data': 'digits', 'epochs': 2, **kwargs})
    except CliError as e: return str(e)

def saved(): return sorted(path.name for path in Path('runs').rglob('*') if path.is_file())

class FaultyNet(nn.Module):
    "A net that calls `fault` instead of the given batch: six batches train in an epoch, two validate."
    def __init__(self, batch, fault):
        super().__init__()
        self.net,self.left,self.fault = models.Model_1(),batch,fault
    def forward(self, x):
        self.left -= 1
        return self.net(x)*(self.fault() if self.left < 0 else 1)

@pytest.fixture
def faulty(monkeypatch):
    "Make step 1's net a `FaultyNet`."
    monkeypatch.setattr(report, 'table', str)
    return lambda *args: monkeypatch.setitem(models.nets, 'Model_1', lambda: FaultyNet(*args))

def test_ctrl_c_stops_with_one_line(faulty, capsys):
    faulty(9, lambda: signal.raise_signal(signal.SIGINT))
    assert main() == 130
    assert capsys.readouterr().out.endswith('\nStopped after epoch 1 of 2: nothing was saved.\n')
    assert saved() == []

def run_into(end):
    with open(end, 'w') as out, contextlib.redirect_stdout(out): return main()

def test_a_lost_reader_is_a_lost_log_not_a_lost_run():
    "`| head`"
    reader,end = os.pipe()
    os.close(reader)
    assert run_into(end) == 0
    assert len(pd.read_csv(folder/'history.csv')) == 2

def test_windows_says_einval_for_epipe(monkeypatch):
    monkeypatch.setattr('builtins.print', Mock(side_effect=OSError(errno.EINVAL, 'Invalid argument')))
    assert run_into(os.devnull) == 0

@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='needs /dev/full')
def test_what_cannot_be_printed_is_said_before_training():
    assert 'nothing was trained: what is printed: No space left' in run_into('/dev/full')
    assert saved() == []

def test_what_cannot_be_saved_is_said_before_training(capsys):
    Path('runs').touch()
    assert 'nothing was trained' in main()
    assert 'train_loss' not in capsys.readouterr().out

@pytest.mark.skipif(os.name != 'posix', reason='needs limits of POSIX')
def test_a_full_disk():
    "Or a file that may not grow: what cannot be saved is said in one line, what could be is there."
    import resource
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, before[1]))
    try: end = main()
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert end == f'Not saved: {folder}/weights.pth: File too large'
    assert saved() == ['confusion.png', 'curves.png', 'history.csv', 'samples.png', 'top_losses.png']

@pytest.mark.parametrize('error, end', [
    (KeyboardInterrupt(), 130),
    (ValueError('no ink\nsecond line'), f'Not saved: {folder}/confusion.png: no ink; {folder}/top_losses.png: no ink')])
def test_what_fails_after_the_training_costs_no_more_than_itself(error, end, monkeypatch, capsys):
    monkeypatch.setattr(report, 'draw_png', draw_png)
    monkeypatch.setattr(report.ClassificationInterpretation, 'from_learner', Mock(side_effect=error))
    assert main() == end
    assert saved() == ['curves.png', 'history.csv', 'samples.png', 'weights.pth']
    said = capsys.readouterr().out
    assert 'verdict' in said or said.endswith('Stopped after epoch 2 of 2: only what is listed above was saved.\n')

def test_runs_side_by_side_do_not_overwrite_each_other():
    for seed in (0, 1): main(seed=seed)
    main(lr=.002, model='Model_4')
    names = ['step1-Model_4-epochs2-lr0.002-not-MNIST', folder.name, 'step1-epochs2-seed1-not-MNIST']
    assert sorted(os.listdir('runs')) == names

def test_without_stdout_and_docstrings(monkeypatch):
    for what in ('sys.stdout', 'step1.__doc__'):  # `>&-`, `python -OO`
        monkeypatch.setattr(what, None)
        assert main() == 0

def test_an_encoding_without_all_characters(monkeypatch):
    out = io.BytesIO()
    monkeypatch.setattr('sys.stdout', io.TextIOWrapper(out, 'ascii', write_through=True))
    assert main(epochs=6) == 0
    last = pd.read_csv('runs/step1-epochs6-not-MNIST/history.csv').valid_accuracy[-5:]
    for said in ('8?26?26', f'last 5 of 6  mean {last.mean():.2%}, lowest {last.min():.2%}'):
        assert said.encode() in out.getvalue()

def test_pictures_leave_matplotlib_as_it_was_and_do_not_follow_the_readers_style(monkeypatch):
    monkeypatch.setattr(report, 'draw_png', draw_png)
    with plt.rc_context({'backend': 'svg', 'text.usetex': True, 'text.latex.preamble': r'\no'}):  # or there is no LaTeX
        plt.close('all')  # of other tests
        plt.figure()
        assert main(epochs=1) == 0
        assert plt.get_backend() == 'svg'
        assert plt.get_fignums() == [1]
    plt.close()

@pytest.mark.parametrize('batch, epoch', [(0, 1), (6, 1), (11, 2)])
def test_a_nan_loss_stops_the_run(batch, epoch, faulty):
    faulty(batch, lambda: float('nan'))
    said = f'Stopped in epoch {epoch}: the loss is not a finite number. A lower learning rate may help.'
    assert main(epochs=3) == said
    assert saved() == []

statuses = {'--epochs 0': 2, '--lr nan': 2, '--seed -1': 2, '--model Model_9': 2, '--resume': 2, '--help': 0,
            '--epochs 1 --seed 4294967295': 0, '--lr 1e30 --epochs 1': 1, '--data ~nobody/x': 1}

@pytest.mark.parametrize('line', statuses)
def test_command_lines(line, monkeypatch, capsys):
    "A run, or status 1 with one line on why not, or status 2 with what is wrong; any other exception fails the test."
    monkeypatch.setattr(sys, 'argv', ['step3.py', '--data', 'digits', *line.split()])
    with pytest.raises(SystemExit) as e: runpy.run_path(project/'step3.py', run_name='__main__')
    status,said = e.value.code or 0,capsys.readouterr().err.splitlines()
    if isinstance(status, str): status,said = 1,[*said, status]
    assert status == statuses[line]
    if status == 2: assert re.search(f': error: .*{line.split()[0]}', said[-1])
    else: assert len(said) == status
