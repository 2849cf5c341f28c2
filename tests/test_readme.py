"Every command and every line of code in README.md, from its own text, on the small digits."
import os, re, runpy, shlex, shutil, subprocess, sys, venv
from pathlib import Path

import nbclient, nbformat
import pytest
import torch

import step3
from conftest import close, project

text = (project/'README.md').read_text(encoding='utf-8')

def blocks(language): return re.findall(rf'```{language}\n(.*?)```', text, re.S)
def lines_to_type(block):
    lines = re.findall(r'^>>> (.*?)(?:  #.*)?$', block, re.M)
    return [line.replace('train(fold', 'train(epochs=1, fold') for line in lines]

sessions = [block for block in blocks('python') if block.startswith('>>> ')]
in_prose = re.findall(r'`((?:diff|OMP_NUM_THREADS=1) [^`]+)`', text)
in_table = re.findall(r'`step3\.py (--[^`]+)`', text)
commands = ''.join(blocks('bash')).splitlines() + in_prose
commands = [line for line in commands if 'gradio' not in line]  # see test_gradio.py
assert len(sessions) == 3
assert len(commands) == 8
assert len(in_table) == 4

@pytest.fixture(autouse=True)
def clone(tmp_path, monkeypatch, environment):
    "A copy of the project as the working folder; Python finds it as a reader's does."
    monkeypatch.chdir(tmp_path)
    del environment['PYTHONPATH']
    for name in ('tests', 'results'): shutil.copytree(project/name, name)
    for path in project.glob('*.*'):
        if path.is_file(): shutil.copy(path, '.')

@pytest.mark.parametrize('block', sessions, ids=['explore', 'read', 'compare'])
def test_lines_in_a_terminal(terminal, block):
    screen = terminal('-i', '-W', 'ignore', PYTHON_BASIC_REPL='1', TERM='dumb')
    screen.expect('>>> ')
    for line in lines_to_type(block):
        screen.sendline(line)
        screen.expect('>>> ')
        assert 'Traceback' not in screen.before, screen.before
        if 'jpg' in line and 'predict' in line: assert screen.before.splitlines()[-1] == "'7'"
        if 'validate' in line: assert screen.before.rstrip().endswith(', 1.0]')

def test_lines_in_a_notebook(tmp_path, environment, monkeypatch):
    "There fastai shows its bars, tables and pictures."
    for name,value in environment.items(): monkeypatch.setenv(name, value)
    monkeypatch.delenv('MPLBACKEND')
    monkeypatch.setenv('PYTHONWARNINGS', 'ignore')
    lines = [*lines_to_type(sessions[0]), "import step1; print('status', step1.main(epochs=2, data='digits'))"]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(line) for line in lines])
    nbclient.NotebookClient(book, timeout=120, resources=dict(metadata=dict(path=tmp_path))).execute()
    *shown,run = [str(cell.outputs) for cell in book.cells]
    assert '<table' in ''.join(shown)
    assert 'image/png' in ''.join(shown)
    assert '<td>2</td>' in run and 'status 0' in run

@pytest.fixture
def tools():
    "A .venv that has all that this Python has, so that pip downloads nothing; and commands for a shell."
    venv.create('.venv', symlinks=True)
    packages, = Path('.venv').rglob('site-packages')
    (packages/'all.pth').write_text('\n'.join(path for path in sys.path if path.endswith('site-packages')))
    python = f'exec {shlex.quote(sys.executable)} "$@"'
    uv = '[ "$1 $2 $3" = "run --no-project --with-requirements" ] && [ -f "$4" ] && shift 4 && exec "$@"'
    folder = Path('tools').resolve()
    folder.mkdir()
    commands = {folder/'python': python, folder/'python3': python, folder/'uv': uv,
                Path('.venv/bin/pip'): '.venv/bin/python -m pip "$@"'}
    for path,line in commands.items():
        path.write_text(f'#!/bin/sh\n{line}\n')
        path.chmod(0o755)
    return folder

@pytest.mark.skipif(os.name != 'posix', reason='needs a POSIX shell')
@pytest.mark.parametrize('command', commands)
def test_commands(command, tools, environment):
    "Of the tests, one is run; of 15 epochs, one."
    if 'load_learner' in command:
        shutil.copy('results/pictures/7.jpg', '.')
        step3.learner(pretrained=True, data='digits').export()
    line = command.replace('FOLDER', '.')
    if line.endswith('pytest'): line += ' tests/test_models.py -k fewer'
    if line.endswith('step3.py') and 'diff' not in line: line += ' --epochs 1'
    environment['PATH'] = f'{tools}:{environment["PATH"]}'
    done = subprocess.run(line, shell=True, env=environment, text=True, capture_output=True, timeout=300)
    assert done.returncode == line.startswith('diff'), done.stderr  # files differ: 1
    if 'step3.py' in line and 'diff' not in line: assert 'NOT MNIST' in done.stdout and os.path.exists('runs/step3')
    if 'load_learner' in line: assert done.stdout.split()[-1] == '7'
    if 'pytest' in line: assert 'passed' in done.stdout

@pytest.mark.parametrize('options', in_table)
def test_options(options, monkeypatch, no_pictures, capsys):
    if 'model' in options: options += ' --epochs 1'
    monkeypatch.setattr(sys, 'argv', ['step3.py', '--data', 'digits', *options.split()])
    with pytest.raises(SystemExit, match='0'): runpy.run_path(project/'step3.py', run_name='__main__')
    assert 'not judged' in capsys.readouterr().out

def test_onnx_block():
    code = next(block for block in blocks('python') if 'onnx' in block)
    learn = step3.learner(pretrained=True, data='digits')
    images,expected = learn.dls.valid_ds.x.cpu().numpy(),learn.get_preds()[0]
    names = dict(torch=torch, learn=learn)
    for n in (1, 360):
        names['images'] = images[:n]
        exec(code, names)
        assert close(torch.tensor(names['logits']).softmax(1), expected[:n], 1e-4)
