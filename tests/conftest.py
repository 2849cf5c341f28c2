"Fixtures: commands in pipes and in a terminal, and small stand-ins for MNIST's files: no MNIST, no network."
import hashlib, os, subprocess, sys
from pathlib import Path

import numpy as np
import pexpect
import pytest

os.environ['OMP_NUM_THREADS'] = '1'  # two workers share two cores
os.environ['NVIDIA_TF32_OVERRIDE'] = '0'  # a GPU calculates as exactly as a CPU

project = Path(__file__).resolve().parent.parent
offline = dict.fromkeys(['http_proxy', 'https_proxy'], 'http://127.0.0.1:9')  # nobody listens there

@pytest.fixture
def environment(tmp_path):
    "For commands in an empty folder: no network, and no MNIST."
    ours = {'PYTHONPATH': str(project), 'MPLBACKEND': 'agg', 'MNIST_ROOT': str(tmp_path/'nothing')}
    return {**os.environ, **offline, **ours}

def command(args):
    if args[0].endswith('.py'): args = [str(project/args[0]), *args[1:]]
    return [sys.executable, *map(str, args)]

@pytest.fixture
def run(tmp_path, environment):
    "Run Python with a step's command line, or others; the output goes into pipes."
    def run(*args, **env):
        return subprocess.run(command(args), cwd=tmp_path, env={**environment, **env}, text=True,
                              capture_output=True, timeout=300)
    return run

@pytest.fixture
def terminal(tmp_path, environment):
    "Start Python as a person does, in a terminal."
    def start(*args, **env):
        program,*args = command(args)
        return pexpect.spawn(program, args, cwd=tmp_path, env={**environment, **env}, encoding='utf-8', timeout=200,
                             dimensions=(50, 200))
    return start

def close(a, b, atol=1e-5):
    "Whether two tensors are equal but for rounding."
    import torch  # here, so that the process that only hands out the tests does not wait for it
    return torch.allclose(a.as_subclass(torch.Tensor).cpu(), b.as_subclass(torch.Tensor).cpu(), atol=atol)

@pytest.fixture
def no_pictures(monkeypatch):
    "For tests of a whole run, not of its pictures, which take longer than the training."
    monkeypatch.setattr('report.pictures', lambda *args: {})

def write_idx(path, values):
    "Write a uint8 array in the IDX format of MNIST's raw files."
    values = np.asarray(values, dtype=np.uint8)
    path.write_bytes(bytes([0, 0, 8, values.ndim]) + np.array(values.shape, '>i4').tobytes() + values.tobytes())

@pytest.fixture
def root(tmp_path, monkeypatch):
    "A folder in MNIST's layout with 1,200 + 300 of the small digits, whose checksums `data` takes for MNIST's."
    import data  # here, so that the process that only hands out the tests does not wait for fastai
    raw = tmp_path/'root'/'MNIST'/'raw'
    raw.mkdir(parents=True)
    (x,y),(test_x,test_y) = data.load_digits()
    parts = [x[:1200, 0], y[:1200], test_x[:300, 0], test_y[:300]]
    for name,values in zip(data.raw_md5, parts):
        write_idx(raw/name, values)
        digest = hashlib.md5((raw/name).read_bytes()).hexdigest()
        monkeypatch.setitem(data.raw_md5, name, digest)
    monkeypatch.setattr(data.MNIST, 'mirrors', ['http://127.0.0.1:9/'])
    return tmp_path/'root'

def pytest_collection_modifyitems(config, items):
    "Tests that need the real MNIST skip themselves where MNIST_ROOT does not lead to it."
    there = (Path(os.environ.get('MNIST_ROOT') or 'nowhere')/'MNIST'/'raw').is_dir()
    for item in items:
        if item.get_closest_marker('mnist') and not there:
            item.add_marker(pytest.mark.skip(reason='MNIST_ROOT leads to no MNIST'))
