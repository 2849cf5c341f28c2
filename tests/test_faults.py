"Nothing lost, nothing silent: interruption, resumption, damage, NaN losses, options that make no sense."
import os, runpy, shlex, shutil, signal, subprocess, sys
from pathlib import Path

import pytest
import torch
from fastai.vision.all import plt
from fastcore.script import CliError
from torch import nn

import report, step1, step3
from conftest import offline, project

pictures = report.pictures  # before `no_pictures` takes it away
posix = pytest.mark.skipif(os.name != 'posix', reason='needs POSIX signals and fork')

@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch, no_pictures): monkeypatch.chdir(tmp_path)

# Trains whole, then again with kills, each time resumed, and compares. It imports once and forks, so that a try takes no seconds.
killing = '''
import os, random, shutil, signal, sys, time
from pathlib import Path
import report, step3
random.seed(0)
folder = Path('runs/step3/not-MNIST')
checkpoint,write = folder/'checkpoint.pth',Path.write_bytes
def slowly(path, data): write(path, data[:len(data)//2]), time.sleep(.2), write(path, data)
Path.write_bytes,report.pictures = slowly,lambda *args: {}

def run(seconds=None):
    "The command in another process, killed after `seconds`: its exit status."
    pid = os.fork()
    if not pid:
        sys.stdout = open(os.devnull, 'w')
        try: os._exit(step3.main(epochs=4, data='digits', resume=checkpoint.exists()))
        finally: os._exit(99)
    if seconds: time.sleep(seconds), os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
def result(): return sorted(os.listdir(folder)), (folder/'history.csv').read_text(), (folder/'weights.pth').read_bytes()

start = time.perf_counter()
assert run() == 0
whole,took = result(),time.perf_counter() - start
shutil.rmtree(folder)
kills = writing = 0
while kills < 10 or not writing or not checkpoint.exists():  # so that the last run is a resumed one, too
    code = run(random.uniform(.1, took*.6))
    kills,writing = kills + (code == -9),writing + (folder/'.checkpoint.pth').exists()
    assert code == -9 or code == 0 and result() == whole, code
    if code == 0: shutil.rmtree(folder)
assert run() == 0 and result() == whole
'''

@posix
def test_killed_ten_times_and_resumed_is_never_interrupted(run):
    done = run('-c', killing)
    assert done.returncode == 0, done.stderr

def main(**kwargs):
    "Step 1's command in this process, on the small digits: its exit status, or its message."
    try: return step1.main(**{'data': 'digits', 'epochs': 2, **kwargs})
    except CliError as e: return str(e)

@pytest.fixture
def interrupted(tmp_path, monkeypatch, capsys):
    "The checkpoint of a run of step 1 that was interrupted in its second epoch."
    def before_train(self):
        if self.epoch == 1: raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(report.Checkpoint, 'before_train', before_train, raising=False)
        assert main() == 130 and 'stopped after epoch 1, target not judged; --resume continues' in capsys.readouterr().out
    folder = tmp_path/'runs'/'step1'/'not-MNIST'
    assert os.listdir(folder) == ['checkpoint.pth']
    return folder/'checkpoint.pth'

def test_resume_continues(interrupted, capsys):
    assert main(resume=True) == 0 and not interrupted.exists() and 'this run: last 2 of 2 epochs' in capsys.readouterr().out

def test_a_run_interrupted_in_its_last_lines_resumes_to_the_ema(tmp_path, monkeypatch):
    def save(*args): raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(report, 'save', save)
        assert step3.main(epochs=2, data='digits') == 130
    assert step3.main(epochs=2, data='digits', resume=True) == 0
    saved,whole = torch.load(tmp_path/'runs/step3/not-MNIST/weights.pth'),step3.train(epochs=2, data='digits').model.state_dict()
    assert all(torch.equal(saved[k], v) for k,v in whole.items())

def test_a_new_run_says_what_it_will_overwrite(interrupted, capsys): assert main() == 0 and 'Starting anew' in capsys.readouterr().err

@pytest.mark.parametrize('other', [dict(epochs=3), dict(seed=1), dict(lr=1e-3), dict(model='Model_2')], ids=str)
def test_checkpoint_of_another_run_is_refused(interrupted, other):
    before,said = interrupted.read_bytes(),main(resume=True, **other)
    assert 'is of another run: ' in said and said.count(' there, ') == 1 and interrupted.read_bytes() == before

@pytest.mark.parametrize('damage', ['empty', 'truncated', 'text', 'code', 'other dictionary'])
def test_damaged_or_malicious_checkpoint_is_refused(interrupted, damage, tmp_path):
    class Payload:
        def __reduce__(self): return os.mkdir, (str(tmp_path/'mark'),)
    data = interrupted.read_bytes()
    if damage in ('code', 'other dictionary'): torch.save(dict(values=Payload() if damage == 'code' else 1), interrupted)
    else: interrupted.write_bytes({'empty': b'', 'truncated': data[:len(data)//2], 'text': b'<html>'}[damage])
    said = main(resume=True)
    assert 'is not a whole checkpoint' in said and len(said.splitlines()) == 1 and not (tmp_path/'mark').exists()
    if damage == 'code':  # the payload does leave its mark where a file is trusted
        torch.load(interrupted, weights_only=False)
        assert (tmp_path/'mark').exists()

@pytest.mark.parametrize('key, there, here', [('device', 'cuda:0', 'cuda' if torch.cuda.is_available() else 'cpu'),
    ('threads', 99, torch.get_num_threads()), ('torch', '1.0', torch.__version__),
    ('trains_on', 'MNIST, training', f'{report.not_mnist}, training')])
def test_checkpoint_of_another_machine_is_refused_not_called_damaged(interrupted, key, there, here):
    state = torch.load(interrupted, weights_only=True)
    torch.save({**state, 'recipe': {**state['recipe'], key: there}}, interrupted)
    assert main(resume=True).endswith(f'is of another run: {key} {there} there, {here} here.')

@posix
def test_ctrl_c_stops_cleanly(tmp_path):
    was = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` has it ignored, also in the child
    p = subprocess.Popen([sys.executable, str(project/'step1.py'), '--data', 'digits', '--epochs', '1000'], cwd=tmp_path, text=True,
                         env={**os.environ, **offline, 'PYTHONUNBUFFERED': '1'}, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    signal.signal(signal.SIGINT, was)
    for line in p.stdout:
        if line.split()[:1] == ['2']: break
    p.send_signal(signal.SIGINT)
    out,err = p.communicate(timeout=60)
    assert p.returncode == 130 and 'stopped after epoch' in out and err.startswith('*** 1000 epochs') and len(err.splitlines()) == 1
    assert [f.name for f in tmp_path.rglob('*') if f.is_file()] == ['checkpoint.pth']

def test_a_run_leaves_backend_and_figures_as_they_were(monkeypatch):
    monkeypatch.setattr(report, 'pictures', pictures)
    plt.switch_backend('svg')
    plt.figure()
    before = plt.get_backend(),plt.get_fignums()
    assert main(epochs=1) == 0 and (plt.get_backend(), plt.get_fignums()) == before
    plt.switch_backend('agg')

class NaNNet(nn.Sequential):
    "A net whose output is NaN from the given batch on."
    def __init__(self, after): super().__init__(step1.Model_1()); self.left = after
    def forward(self, x):
        self.left -= 1
        return super().forward(x) * (float('nan') if self.left < 0 else 1)

@pytest.mark.parametrize('after, where', [(0, 'epoch 1, batch 1'), (6, 'epoch 1, test batch 1'), (11, 'epoch 2, batch 4')])
def test_a_nan_loss_stops_at_once(tmp_path, monkeypatch, capsys, after, where):
    with pytest.raises(FloatingPointError, match=f'Stopped in {where}: the loss is nan'):
        step1.train(2, data='digits', model=lambda: NaNNet(after))
    monkeypatch.setitem(report.nets, 'Model_1', lambda: NaNNet(after))
    monkeypatch.setattr(report, 'table', lambda net: '')
    said = main()
    assert said.startswith(f'Stopped in {where}') and len(said.splitlines()) == 1 and 'saved' not in capsys.readouterr().out
    folder = tmp_path/'runs'/'step1'/'not-MNIST'
    assert os.listdir(folder) == (['checkpoint.pth'] if 'epoch 2' in where else [])
    if 'epoch 2' in where: assert all(v.isfinite().all() for v in torch.load(folder/'checkpoint.pth', weights_only=True)['net'].values())

@pytest.mark.skipif(not shutil.which('unshare'), reason='needs the command unshare')
def test_full_disk(tmp_path):
    "What cannot be saved is said in one line, what could be is there; a checkpoint too large does not end the training."
    step = shlex.join([sys.executable, str(project/'step1.py'), '--data', 'digits', '--epochs', '1'])
    line = f'mkdir runs; mount -t tmpfs -o size=24k tmpfs runs || exit 77; {step}; status=$?; ls -A runs/step1/not-MNIST; exit $status'
    done = subprocess.run(['unshare', '-rm', 'sh', '-c', line], cwd=tmp_path, text=True, capture_output=True, timeout=300,
                          env={**os.environ, **offline})
    if done.returncode == 77 or 'unshare' in done.stderr: pytest.skip(f'no file system of its own here: {done.stderr.strip()}')
    said = done.stderr.splitlines()
    assert done.returncode == 1 and len(said) == 2 and 'Training continues' in said[0], done.stderr
    assert 'No space left on device' in said[1] and 'free disk space' in said[1]
    assert 'this run: last 1 of 1' in done.stdout and done.stdout.splitlines()[-1] == 'history.csv'

def test_what_cannot_be_saved_is_said_before_training(tmp_path, capsys):
    (tmp_path/'runs').write_text('a file where the folder should be')
    assert 'Nothing was trained' in main() and 'train_loss' not in capsys.readouterr().out

bad = ['--epochs 0', '--epochs 1.5', '--epochs', '--lr 0', '--lr nan', '--lr inf', '--lr -1', '--lr x',
       '--seed -1', '--seed 4294967296', '--model Model_9', '--model', '--bs 64', '-x', 'word']
good = {'--help': 0, '--epochs 1 --seed 4294967295 --model Model_1': 0, '--lr 1e30 --epochs 1': 1, '--resume --epochs 1': 1,
        '--data mnist': 1, '--data cifar': 1, '--data ~': 1}

@pytest.mark.parametrize('line', [*bad, *good])
def test_command_lines(line, monkeypatch, capsys, tmp_path):
    "A run, or status 1 with one line on why not, or status 2 with what is wrong; any other exception fails the test."
    monkeypatch.setenv('MNIST_ROOT', str(tmp_path/'nothing'))
    monkeypatch.setattr('data.MNIST.mirrors', ['http://127.0.0.1:9/'])
    monkeypatch.setattr(sys, 'argv', ['step3.py', *line.split(), *([] if '--data' in line or line in good else ['--data', 'digits'])])
    with pytest.raises(SystemExit) as e: runpy.run_path(project/'step3.py', run_name='__main__')
    said = capsys.readouterr().err.splitlines() + ([e.value.code] if isinstance(e.value.code, str) else [])
    said = [l for l in said if not l.startswith('***')]
    status = 1 if isinstance(e.value.code, str) else e.value.code or 0
    assert status == good.get(line, 2) and (': error: ' in said[-1] and line.split()[0] in said[-1] if line in bad else len(said) == status)
    assert not Path('~').exists()
