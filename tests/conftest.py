"Fixtures: the project's root for subprocesses, and small stand-ins for MNIST's files, so that the tests need neither MNIST nor network."
import hashlib, os, subprocess, sys
from pathlib import Path

import numpy as np
import pexpect
import pytest

os.environ['OMP_NUM_THREADS'] = '1'  # two workers share two cores
os.environ['NVIDIA_TF32_OVERRIDE'] = '0'  # a GPU calculates as exactly as a CPU

project = Path(__file__).resolve().parent.parent
offline = {f'{o}_proxy': 'http://127.0.0.1:9' for o in ('http', 'https')}  # nobody listens there: every download is refused

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
        return subprocess.run(command(args), cwd=tmp_path, env={**environment, **env}, text=True, capture_output=True, timeout=300)
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
    for part,(x,y) in zip(('train', 't10k'), data.load_digits()):
        n = dict(train=1200, t10k=300)[part]
        write_idx(raw/f'{part}-images-idx3-ubyte', x[:n,0])
        write_idx(raw/f'{part}-labels-idx1-ubyte', y[:n])
    monkeypatch.setattr(data, 'raw_md5', {name: hashlib.md5((raw/name).read_bytes()).hexdigest() for name in data.raw_md5})
    monkeypatch.setattr(data.MNIST, 'mirrors', ['http://127.0.0.1:9/'])
    return tmp_path/'root'

def pytest_collection_modifyitems(config, items):
    "Tests that need the real MNIST skip themselves where MNIST_ROOT does not lead to it."
    there = (Path(os.environ.get('MNIST_ROOT') or 'nowhere')/'MNIST'/'raw').is_dir()
    for item in items:
        if item.get_closest_marker('mnist') and not there: item.add_marker(pytest.mark.skip(reason='MNIST_ROOT leads to no MNIST'))
