"Nothing lost, nothing silent: interruption, resumption, damage, numbers that explode, arguments that make no sense."
import contextlib, gc, io, json, os, shlex, signal, subprocess, sys

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings, strategies as st
from torch import nn

import report, step1, step3
from conftest import offline, project
from fastcore.script import CliError, anno_parser

posix = pytest.mark.skipif(os.name != 'posix', reason='needs POSIX signals and fork')


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch, no_pictures): monkeypatch.chdir(tmp_path)

@pytest.fixture(autouse=True)
def old_handlers():
    "A `Guard` takes the signals over: give them back to pytest."
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    yield
    for s,h in handlers.items(): signal.signal(s, h)


# Trains whole, then again with kills, each time resumed, and compares. It imports once and forks, so that a try takes no seconds.
killing = '''
import os, random, signal, sys, time
from pathlib import Path
import report, step3
random.seed(int(sys.argv[1]))
folder = Path('runs/step3/not-MNIST')
aside = folder/'.checkpoint.pth'

def start(resume=False, slow=False):
    pid = os.fork()
    if pid: return pid
    sys.stdout = open(os.devnull, 'w')
    def halves(state, path, whole=report.write_tensors):
        whole(state, path)
        data = path.read_bytes()
        path.write_bytes(data[:len(data)//2])
        time.sleep(.2)
        path.write_bytes(data)
    if slow: report.write_tensors = halves
    status = 99
    try: status = step3.main(epochs=4, data='digits', resume=resume)
    finally:
        sys.stderr.flush()
        os._exit(status)

def result():
    rows = [l.split(',')[:5] for l in (folder/'history.csv').read_text().split()]
    return rows, (folder/'weights.pth').read_bytes()

def status(pid): return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

assert status(start()) == 0
whole,names = result(),sorted(os.listdir(folder))
for f in folder.iterdir(): f.unlink()
kills = writing = 0
while kills < int(sys.argv[2]) or not (folder/'checkpoint.pth').exists():  # so that the last run is a resumed one, too
    slow = kills % 2 == 1  # every other kill: while a checkpoint is being written
    pid,begun = start((folder/'checkpoint.pth').exists(), slow),time.time()
    wait = random.uniform(.1, 1.2)
    while time.time() - begun < wait or slow and not aside.exists():
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT): break
        time.sleep(.005)
    writing += aside.exists()
    os.kill(pid, signal.SIGKILL)
    code = status(pid)
    kills += code == -9
    assert code in (0, -9), code
    if code == 0: assert result() == whole
    if code == 0 or (folder/'history.csv').exists():  # it was too late for a kill: begin anew
        for f in folder.iterdir(): f.unlink()
assert status(start(resume=True)) == 0
assert result() == whole and sorted(os.listdir(folder)) == names, os.listdir(folder)
print(f'{kills} kills, {writing} while writing: the same bits')
'''

@posix
@pytest.mark.parametrize('kills', [10, pytest.param(200, marks=pytest.mark.nightly)])
def test_killed_and_resumed_is_never_interrupted(tmp_path, kills):
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', killing, '0', str(kills)], cwd=tmp_path, text=True, capture_output=True,
                          env={**os.environ, **offline, 'PYTHONPATH': str(project), 'OMP_NUM_THREADS': '1'}, timeout=60*kills)
    assert done.returncode == 0, done.stderr
    said = done.stdout.split()
    assert int(said[0]) >= kills and int(said[2]) >= 1 and 'the same bits' in done.stdout


def main(**kwargs):
    "Run step 1's command in this process on the small digits: (exit status or message, what it printed)."
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try: status = step1.main(**{'data': 'digits', 'epochs': 2, **kwargs})
        except SystemExit as e: status = e.code
    return status,out.getvalue()

@pytest.fixture
def interrupted(tmp_path):
    "The folder of a run of step 1 that was stopped after its first of two epochs."
    class StopInSecond(report.Guard):
        def before_train(self):
            if self.epoch == 1: self.stopped = signal.SIGTERM
    with pytest.MonkeyPatch.context() as m:
        m.setattr(report, 'Guard', StopInSecond)
        status,out = main()
    assert status == 143 and 'stopped after epoch 1, target not judged; --resume' in out and 'TARGET' not in out
    return tmp_path/'runs'/'step1'/'not-MNIST'

def test_resume_goes_on(interrupted):
    assert os.listdir(interrupted) == ['checkpoint.pth']
    status,out = main(resume=True)
    assert status == 0 and 'this run: last 2 of 2 epochs' in out and 'checkpoint.pth' not in os.listdir(interrupted)

@pytest.mark.parametrize('other', [dict(epochs=3), dict(seed=1), dict(lr=1e-3), dict(bs=64)])
def test_checkpoint_of_another_run_is_refused(interrupted, other):
    before = (interrupted/'checkpoint.pth').read_bytes()
    status,_ = main(resume=True, **other)
    assert 'is of another run' in status and f'{list(other)[0]} ' in status and status.count(' there, ') == 1
    assert (interrupted/'checkpoint.pth').read_bytes() == before

def test_checkpoint_of_another_net_is_refused(interrupted):
    state = torch.load(interrupted/'checkpoint.pth', weights_only=True)
    torch.save({**state, 'recipe': {**state['recipe'], 'net': 'Model_2'}}, interrupted/'checkpoint.pth')
    status,_ = main(resume=True)
    assert status.endswith('is of another run: net Model_2 there, Model_1 here.')

@pytest.mark.parametrize('damage', ['empty', 'truncated', 'text', 'code'])
def test_damaged_or_malicious_checkpoint_is_refused(interrupted, damage, tmp_path):
    path = interrupted/'checkpoint.pth'
    class Payload:
        def __reduce__(self): return os.mkdir, (str(tmp_path/'mark'),)
    data = path.read_bytes()
    if damage == 'code': torch.save(dict(rows=Payload()), path)
    else: path.write_bytes({'empty': b'', 'truncated': data[:len(data)//2], 'text': b'<html>'}[damage])
    status,_ = main(resume=True)
    assert 'no whole checkpoint' in status and len(status.splitlines()) == 1 and not (tmp_path/'mark').exists()
    if damage == 'code':  # the payload does leave its mark where a file is trusted
        torch.load(path, weights_only=False)
        assert (tmp_path/'mark').exists()

def test_nothing_to_resume(tmp_path):
    status,_ = main(resume=True)
    assert 'There is no' in status and 'without --resume' in status

def test_a_new_run_says_what_it_will_overwrite(interrupted, capsys):
    main()
    assert 'Starting anew' in capsys.readouterr().err

@posix
def test_ctrl_c_and_sigterm_end_in_order(tmp_path):
    def start(name):
        (tmp_path/name).mkdir()
        return subprocess.Popen([sys.executable, '-W', 'ignore', str(project/'step1.py'), '--data', 'digits', '--epochs', '1000'], cwd=tmp_path/name,
                                env={**os.environ, **offline, 'PYTHONUNBUFFERED': '1'}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    runs = [(start(s.name), s) for s in (signal.SIGINT, signal.SIGTERM)]
    for p,signum in runs:
        for line in p.stdout:
            if line.split()[:1] == ['2']: break
        p.send_signal(signum)
        out,err = p.communicate(timeout=60)
        assert p.returncode == 128 + signum and 'stopped after epoch' in out and 'Traceback' not in err and 'rule is at most 15' in err
        assert [f.name for f in (tmp_path/signum.name).rglob('*') if f.is_file()] == ['checkpoint.pth']

@posix
def test_a_second_run_at_the_same_time_is_refused(interrupted):
    gc.collect()  # the run that was interrupted in this very process lets go of its folder
    held = report.lock(interrupted)
    status,_ = main()
    os.close(held)
    assert 'Another run is at work' in status and 'checkpoint.pth' in os.listdir(interrupted)
    assert main(resume=True)[0] == 0


class NotANumber(nn.Sequential):
    "A net whose loss is no number from the given batch on."
    def __init__(self, after): super().__init__(step1.Model_1()); self.left = after
    def forward(self, x):
        self.left -= 1
        return super().forward(x) * (float('nan') if self.left < 0 else 1)

@pytest.mark.parametrize('after, where', [(0, 'epoch 1, batch 1'), (12, 'epoch 1, test batch 1'), (17, 'epoch 2, batch 4')])
def test_a_loss_that_is_no_number_stops_at_once(tmp_path, monkeypatch, after, where):
    learner = step1.learner
    monkeypatch.setattr(step1, 'learner', lambda **kw: learner(model=lambda: NotANumber(after), **kw))
    status,out = main()
    assert f'Stopped in {where}: the loss is nan' in status and len(status.splitlines()) == 1 and 'saved' not in out
    folder = tmp_path/'runs'/'step1'/'not-MNIST'
    assert os.listdir(folder) == (['checkpoint.pth'] if 'epoch 2' in where else [])
    if 'epoch 2' in where: assert all(v.isfinite().all() for v in torch.load(folder/'checkpoint.pth', weights_only=True)['nets'][0].values())

@pytest.mark.parametrize('rate', [1e6, 1e30])
def test_a_rate_that_explodes(tmp_path, rate):
    status,_ = main(lr=rate)
    assert status.startswith('Stopped in epoch 1, batch') and 'A lower --lr' in status
    report.tidy(report.runs/'step1'/'not-MNIST')  # as at exit
    assert list(tmp_path.iterdir()) == []  # nothing was saved, nothing is left

def test_infinite_images(monkeypatch):
    learn = step1.learner(data='digits')
    learn.dls.train.after_batch.add(Blow())
    with pytest.raises(CliError, match='diverged'): report.find(learn, 'step1')

class Blow(report.Transform):
    order = 200
    def encodes(self, x:report.TensorImage): return x*float('inf')

def test_full_disk(tmpfs):
    "What cannot be saved is said in one line, what could be is there; a checkpoint too large does not end the training."
    done = tmpfs('runs', '24k', project/'step1.py', '--data', 'digits', '--epochs', '1', after='ls -A runs/step1/not-MNIST')
    said = done.stderr.splitlines()
    assert done.returncode == 1 and len(said) == 2 and 'Training goes on' in said[0], done.stderr
    assert 'No space left on device' in said[1] and 'make room' in said[1]
    assert 'this run: last 1 of 1' in done.stdout and done.stdout.splitlines()[-1] == 'history.csv'


words = st.one_of(st.integers(-10**6, 10**6).map(str), st.floats().map(str), st.text(st.characters(codec='ascii', exclude_categories=['Cc']), max_size=8),
                  st.sampled_from(['0', '1', '2', '15', '16', '1e-2', 'nan', 'inf', '-inf', 'mnist', 'digits', 'auto', '', '1e400', '0x10', '١']))
options = st.sampled_from(['--epochs', '--seed', '--lr', '--bs', '--data', '--root', '--find', '--resume', '--device', '-x', 'word'])
lines = st.lists(st.one_of(options, st.tuples(options, words).map(list)), max_size=6).map(
    lambda parts: [w for p in parts for w in (p if isinstance(p, list) else [p])])

def check(line):
    "A command line is either parsed into values in range, or refused with status 2 and one line on what is wrong."
    err = io.StringIO()
    try:
        with contextlib.redirect_stderr(err), contextlib.redirect_stdout(err): got = vars(anno_parser(step3.main, prog='step3.py').parse_args(line))
    except SystemExit as e: return e.code == 2 and err.getvalue().splitlines()[-1].startswith('step3.py: error: ') or e.code == 0
    return (got['epochs'] >= 1 and 0 <= got['seed'] < 2**32 and 0 < got['lr'] < float('inf') and got['bs'] >= 2
            and got['data'] in ('auto', 'mnist', 'digits'))

@settings(max_examples=500, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(lines)
def test_any_command_line(line): assert check(line), shlex.join(line)

# Runs each command line of a JSON list in a process of its own: prints [exit status, stderr] of each. It imports once and forks.
running = '''
import json, os, runpy, sys, tempfile
import report, step3
done = []
for line in json.load(sys.stdin):
    with tempfile.TemporaryFile('w+') as err:
        pid = os.fork()
        if not pid:
            for fd,to in ((1, os.open(os.devnull, os.O_WRONLY)), (2, err.fileno())): os.dup2(to, fd)
            sys.argv,status = ['step3.py', *line],0
            try: runpy.run_path(step3.__file__, run_name='__main__')
            except SystemExit as e: status = e.code if isinstance(e.code, int) else (print(e.code, file=sys.stderr), 1)[1] if e.code else 0
            except BaseException: status = (sys.excepthook(*sys.exc_info()), 1)[1]
            sys.stderr.flush()
            os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        err.seek(0)
        done.append([status, err.read()])
print(json.dumps(done))
'''

def run_lines(lines, folder):
    "A run (0, or 1 with one line on why not), or status 2 with one line on what is wrong; never a traceback."
    lines = [[*line, '--data', 'digits', '--epochs', '1'] for line in lines]
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', running], cwd=folder, text=True, capture_output=True, input=json.dumps(lines),
                          env={**os.environ, **offline, 'PYTHONPATH': str(project), 'MPLBACKEND': 'agg', 'OMP_NUM_THREADS': '1'}, timeout=60*len(lines))
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    for line,(status,err) in zip(lines, results):
        said = [l for l in err.splitlines() if not l.startswith('***')]
        ok = not said if status == 0 else len(said) == 1 if status == 1 else status == 2 and (': error: ' in said[-1] or said[-1].startswith('--bs'))
        assert ok and 'Traceback' not in err, (shlex.join(line), status, err)
    return [status for status,_ in results]

def sample(n):
    "`n` of the command lines that hypothesis draws."
    drawn = []
    @settings(max_examples=20*n, deadline=None, derandomize=True, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(lines)
    def collect(line): drawn.append(line)
    collect()
    return drawn[::len(drawn)//n][:n]

@posix
def test_command_lines_in_processes(tmp_path): assert {0, 2} <= set(run_lines(sample(10), tmp_path))

@posix
@pytest.mark.nightly
def test_command_lines_in_processes_at_length(tmp_path): run_lines(sample(300), tmp_path)

@pytest.mark.nightly
@settings(max_examples=20_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(lines)
def test_any_command_line_at_length(line): assert check(line), shlex.join(line)

def test_a_batch_larger_than_the_data(capsys):
    assert main(bs=1438)[0] == 2
    assert capsys.readouterr().err == '--bs: a batch of 1438 is more than the 1,437 training images\n'
