"Nothing lost, nothing silent: interruption, lost readers, full disks, NaN losses, options that make no sense."
import io, os, runpy, shlex, shutil, signal, subprocess, sys
from pathlib import Path

import pandas as pd
import pytest
from fastai.vision.all import plt
from fastcore.script import CliError
from torch import nn

import models, report, step1
from conftest import command, project

draw_pictures = report.pictures  # before `no_pictures` takes it away

@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch, no_pictures): monkeypatch.chdir(tmp_path)

def main(**kwargs):
    "Step 1's command in this process, on the small digits: its exit status, or its message."
    try: return step1.main(**{'data': 'digits', 'epochs': 2, **kwargs})
    except CliError as e: return str(e)

def saved(): return sorted(path.name for path in Path('runs').rglob('*') if path.is_file())

@pytest.fixture
def start(environment):
    "Start step 1 with its output in pipes; returns the process."
    def start(*args, stderr=subprocess.PIPE):
        was = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` has it ignored
        line = command(['step1.py', '--data', 'digits', *args])
        p = subprocess.Popen(line, env=environment, text=True, stdout=subprocess.PIPE, stderr=stderr)
        signal.signal(signal.SIGINT, was)
        return p
    return start

def read_to(stream, epoch):
    for line in stream:
        if line.split()[:1] == [epoch]: return

posix = pytest.mark.skipif(os.name != 'posix', reason='needs POSIX signals')

@posix
def test_ctrl_c_stops_cleanly(start):
    p = start('--epochs', '1000')
    read_to(p.stdout, '2')
    p.send_signal(signal.SIGINT)
    out,err = p.communicate(timeout=60)
    assert p.returncode == 130
    assert out.splitlines()[-1].startswith('Stopped after epoch')
    assert err == '*** 1000 epochs: the rule is at most 15; no target is judged.\n' and saved() == []

def test_ctrl_c_while_saving_says_what_was_saved(monkeypatch, capsys):
    def interrupt(): raise KeyboardInterrupt
    monkeypatch.setattr(report, 'pictures', lambda *args: dict(one=interrupt))
    assert main() == 130 and saved() == ['history.csv', 'weights.pth']
    assert capsys.readouterr().out.endswith('Stopped after epoch 2 of 2: only what is listed above was saved.\n')

@posix
@pytest.mark.parametrize('interrupted', [False, True])
def test_a_lost_reader_is_a_lost_log_not_a_lost_run(start, interrupted):
    "`| head`; and Ctrl-C with `| tee`, which ends tee first. Both streams are lost."
    p = start('--epochs', '1000' if interrupted else '3', stderr=subprocess.STDOUT)
    read_to(p.stdout, '1')
    p.stdout.close()
    if interrupted: p.send_signal(signal.SIGINT)
    assert p.wait(60) == (130 if interrupted else 0)
    if not interrupted: assert len(pd.read_csv('runs/step1/not-MNIST/history.csv')) == 3

def test_without_stdout_and_docstrings(monkeypatch):
    for what in ('sys.stdout', 'step1.__doc__'):  # `>&-`, `python -OO`
        monkeypatch.setattr(what, None)
        assert main() == 0

def test_an_encoding_without_all_characters(monkeypatch):
    out = io.BytesIO()
    monkeypatch.setattr('sys.stdout', io.TextIOWrapper(out, 'ascii', write_through=True))
    assert main(epochs=6) == 0
    said = out.getvalue().decode('ascii')
    last = pd.read_csv('runs/step1/not-MNIST/history.csv').valid_accuracy[-5:]
    assert '8?26?26' in said and f'last 5 of 6 epochs: mean {last.mean():.2%}, lowest {last.min():.2%}' in said

def test_a_run_leaves_backend_and_figures_as_they_were(monkeypatch):
    monkeypatch.setattr(report, 'pictures', draw_pictures)
    plt.switch_backend('svg')
    plt.figure()
    before = plt.get_backend(),plt.get_fignums()
    assert main(epochs=1) == 0
    assert (plt.get_backend(), plt.get_fignums()) == before
    plt.switch_backend('agg')

def test_pictures_do_not_follow_the_readers_style(monkeypatch):
    monkeypatch.setattr(report, 'pictures', lambda *args: dict(one=lambda: plt.plot([1, 2])))
    with plt.rc_context({'text.usetex': True, 'text.latex.preamble': r'\no'}):  # there may be no LaTeX
        assert main() == 0
        assert saved() == ['history.csv', 'one.png', 'weights.pth']

def test_a_picture_that_fails_costs_no_more_than_itself(monkeypatch, capsys):
    def fail(): raise RuntimeError('no ink\nsecond line')
    monkeypatch.setattr(report, 'pictures', lambda *args: dict(bad=fail, good=plt.figure))
    assert main() == 'Not saved: runs/step1/not-MNIST/bad.png: no ink'
    assert 'verdict' in capsys.readouterr().out
    assert saved() == ['good.png', 'history.csv', 'weights.pth']

@pytest.mark.skipif(not shutil.which('unshare'), reason='needs the command unshare')
def test_full_disk(tmp_path, environment):
    "What cannot be saved is said in one line, what could be is there."
    step = shlex.join(command(['step1.py', '--data', 'digits', '--epochs', '1']))
    disk = 'mkdir runs; mount -t tmpfs -o size=24k tmpfs runs || exit 77'
    line = ['unshare', '-rm', 'sh', '-c', f'{disk}; {step}; status=$?; ls -A runs/step1/*; exit $status']
    done = subprocess.run(line, cwd=tmp_path, env=environment, text=True, capture_output=True)
    if done.returncode == 77 or 'unshare' in done.stderr: pytest.skip(f'no disk of its own: {done.stderr}')
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert 'Not saved: runs/' in done.stderr and 'weights.pth: No space left on device' in done.stderr
    assert 'verdict' in done.stdout
    assert done.stdout.splitlines()[-1] == 'history.csv'

def test_what_cannot_be_saved_is_said_before_training(tmp_path, capsys):
    (tmp_path/'runs').write_text('a file where the folder should be')
    assert 'nothing was trained' in main() and 'train_loss' not in capsys.readouterr().out

class NaNNet(nn.Module):
    "A net whose output is NaN from the given batch on."
    def __init__(self, after):
        super().__init__()
        self.net,self.left = models.Model_1(),after
    def forward(self, x):
        self.left -= 1
        return self.net(x)*(1 if self.left >= 0 else float('nan'))

@pytest.mark.parametrize('after, epoch', [(0, 1), (6, 1), (11, 2)])  # six batches train, two validate
def test_a_nan_loss_stops_the_run(monkeypatch, after, epoch):
    said = f'Stopped after epoch {epoch}: the loss is not a finite number. A lower learning rate may help.'
    with pytest.raises(FloatingPointError, match=said): step1.train(3, data='digits', model=lambda: NaNNet(after))
    monkeypatch.setitem(models.nets, 'Model_1', lambda: NaNNet(after))
    monkeypatch.setattr(report, 'table', lambda net: '')
    assert main(epochs=3) == said and saved() == []

bad = ['--epochs 0', '--epochs 1.5', '--epochs', '--lr 0', '--lr nan', '--lr inf', '--lr -1', '--lr x', '--seed -1',
       '--seed 4294967296', '--model Model_9', '--model', '--bs 64', '--resume', 'word']
good = {'--help': 0, '--epochs 1 --seed 4294967295 --model Model_1': 0, '--lr 1e30 --epochs 1': 1, '--data mnist': 1,
        '--data cifar': 1, '--data ~': 1, '--data ~nobody/x': 1}

@pytest.mark.parametrize('line', [*bad, *good])
def test_command_lines(line, monkeypatch, capsys, tmp_path):
    "A run, or status 1 with one line on why not, or status 2 with what is wrong; any other exception fails the test."
    monkeypatch.setenv('MNIST_ROOT', str(tmp_path/'nothing'))
    monkeypatch.setattr('data.MNIST.mirrors', ['http://127.0.0.1:9/'])
    words = line.split()
    if '--data' not in words: words += ['--data', 'digits']
    monkeypatch.setattr(sys, 'argv', ['step3.py', *words])
    with pytest.raises(SystemExit) as e: runpy.run_path(project/'step3.py', run_name='__main__')
    status,said = e.value.code or 0,capsys.readouterr().err.splitlines()
    if isinstance(status, str): status,said = 1,[*said, status]
    assert status == good.get(line, 2)
    assert not os.path.exists('~')
    if line in bad: assert ': error: ' in said[-1] and words[0] in said[-1]
    else: assert len(said) == status
