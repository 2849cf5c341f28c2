"Fixtures: commands in pipes and in a terminal, and small stand-ins for MNIST's files: no MNIST, no network."
import hashlib, os, subprocess, sys
from pathlib import Path

import numpy as np
import pexpect
import pytest

os.environ['OMP_NUM_THREADS'] = '1'  # two workers share two cores
os.environ['NVIDIA_TF32_OVERRIDE'] = '0'  # a GPU calculates as exactly as a CPU
for name in [*os.environ]:  # in a hook git would take its repository for that of a test
    if name.startswith('GIT_'): del os.environ[name]

project = Path(__file__).resolve().parents[1]
offline = dict.fromkeys(['http_proxy', 'https_proxy'], 'http://127.0.0.1:9')  # nobody listens there

@pytest.fixture
def environment(tmp_path):
    "For commands in an empty folder: no network, and no MNIST."
    return {**os.environ, **offline, 'PYTHONPATH': str(project), 'MPLBACKEND': 'agg', 'MNIST_ROOT': str(tmp_path/'no')}

def command(step, *options):
    "The command line of a step on the small digits."
    return [sys.executable, str(project/step), '--data', 'digits', *options]

@pytest.fixture
def run(tmp_path, environment):
    "Run a command, its output in pipes."
    def run(line):
        return subprocess.run(line, cwd=tmp_path, env=environment, text=True, capture_output=True, timeout=300)
    return run

@pytest.fixture
def terminal(tmp_path, environment):
    "Start a command as a person does, in a terminal."
    def start(*line):
        return pexpect.spawn(line[0], [*line[1:]], cwd=tmp_path, env=environment, encoding='utf-8', timeout=200,
                             dimensions=(50, 200))
    return start

def close(a, b, atol=1e-5):
    "Whether two tensors are equal but for rounding."
    import torch  # here, so that the process that only hands out the tests does not wait for it
    return torch.allclose(a.as_subclass(torch.Tensor).cpu(), b.as_subclass(torch.Tensor).cpu(), atol=atol)

@pytest.fixture
def no_pictures(monkeypatch):
    "For tests of a whole run, not of its pictures, which take longer than the training: their files stay empty."
    monkeypatch.setattr('report.draw_png', lambda draw, file: None)

@pytest.fixture
def root(tmp_path, monkeypatch):
    "A folder in MNIST's layout with 1,200 + 300 of the small digits, whose checksums `data` takes for MNIST's."
    import data  # here, so that the process that only hands out the tests does not wait for fastai
    raw = tmp_path/'root'/'MNIST'/'raw'
    raw.mkdir(parents=True)
    (x,y),(test_x,test_y) = data.small_digits()
    parts = [x[:1200, 0], y[:1200], test_x[:300, 0], test_y[:300]]
    for name,values in zip(data.raw_md5, parts):
        header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, '>i4').tobytes()
        content = header + values.byte().numpy().tobytes()
        (raw/name).write_bytes(content)
        monkeypatch.setitem(data.raw_md5, name, hashlib.md5(content).hexdigest())
    monkeypatch.setattr(data.MNIST, 'mirrors', ['http://127.0.0.1:9/'])
    return tmp_path/'root'

def pytest_collection_modifyitems(items):
    "Tests that need the real MNIST skip themselves where MNIST_ROOT does not lead to it."
    if os.path.isdir(os.path.join(os.environ.get('MNIST_ROOT') or 'nowhere', 'MNIST', 'raw')): return
    for item in items:
        if item.get_closest_marker('mnist'): item.add_marker(pytest.mark.skip('MNIST_ROOT leads to no MNIST'))
