"Every command and every line of code in README.md and USING.md, from their own text, on the small digits."
import os, re, runpy, shlex, shutil, sys
from pathlib import Path

import nbclient, nbformat
import pytest
import torch

import step3
from conftest import close, project

text = ''.join((project/name).read_text(encoding='utf-8') for name in ('USING.md', 'README.md'))

def blocks(language): return re.findall(rf'```{language}\n(.*?)```', text, re.S)
def typed(block): return re.findall(r'^(>>>|\.\.\.) ?(.*)', block.replace('train(fold', 'train(epochs=1, fold'), re.M)

sessions = [typed(block) for block in blocks('python') if block.startswith('>>> ')]
lines = [*''.join(blocks('bash')).splitlines(), *re.findall(r'`(diff [^`]+)`', text)]
options = re.findall(r'`step3\.py (--[^`]+)`', text)
kinds = dict(whole=r'^uv .*step3\.py$', start=r'pip .*step3\.py$', test='-m pytest$', load='load_learner',
             differ='^diff', browser='gradio')  # the last in test_gradio.py
def each(kind): return pytest.mark.parametrize('line', [line for line in lines if re.search(kinds[kind], line)])

def test_nothing_in_the_readme_is_left_out():
    assert len(sessions) == 3
    assert len(options) == 4
    for line in lines: assert re.search('|'.join(kinds.values()), line)
    for kind in kinds.values(): assert re.search(kind, '\n'.join(lines), re.M)

@pytest.fixture(autouse=True)
def clone(tmp_path, monkeypatch, environment):
    "A copy of the project as the working folder; Python finds it as a reader's does."
    monkeypatch.chdir(tmp_path)
    del environment['PYTHONPATH']
    for name in ('tests', 'results'): shutil.copytree(project/name, name)
    for path in project.glob('*.*'):
        if path.is_file(): shutil.copy(path, '.')

def test_lines_in_a_repl(terminal, environment):
    environment.update(PYTHON_BASIC_REPL='1', TERM='dumb')
    screen = terminal(sys.executable, '-i', '-W', 'ignore')
    before = ''
    for prompt,line in [*sum(sessions, []), ('>>>', '')]:
        prompts = [r'[\r\n]>>> ', r'\n\.\.\. ']
        assert screen.expect(prompts) == ['>>>', '...'].index(prompt), f'After {before!r} Python waits for more.'
        shown = screen.before.rstrip()
        assert 'Error' not in shown, shown
        if 'jpg' in before and 'predict' in before: assert shown.endswith("'7'")
        if 'validate' in before: assert shown.endswith(', 1.0]')
        screen.sendline(line)
        before = line

def test_lines_in_a_notebook(tmp_path, environment, monkeypatch):
    "There fastai shows its bars, tables and pictures."
    for name,value in environment.items(): monkeypatch.setenv(name, value)
    monkeypatch.delenv('MPLBACKEND')
    monkeypatch.setenv('PYTHONWARNINGS', 'ignore')
    cells = ['\n'.join(line for _,line in sessions[0]), "import step1; step1.main(epochs=2, data='digits')"]
    book = nbformat.v4.new_notebook(cells=[*map(nbformat.v4.new_code_cell, cells)])
    nbclient.NotebookClient(book, timeout=120, resources=dict(metadata=dict(path=tmp_path))).execute()
    shown,run = [str(cell.outputs) for cell in book.cells]
    for words in ('<table', 'image/png'): assert words in shown
    for words in ('<td>2</td>', 'verdict'): assert words in run

@pytest.fixture
def shell(terminal, environment):
    "Type a line into a shell. What uv, venv and pip would install is all in this Python: pip only looks."
    environment['PATH'] = f'tools:{environment["PATH"]}'
    python = f'exec {shlex.quote(sys.executable)}'
    scripts = {
        'tools/uv': '[ "$1 $2 $4" = "run --python --no-project" ] && [ -f "$6" ] && shift 6 && exec "$@"',
        'tools/python3': '[ "$*" = "-m venv .venv" ]',
        'tools/python': f'{python} "$@"',
        '.venv/bin/python': f'{python} "$@"',
        '.venv/bin/pip': f'{python} -m pip "$@" --dry-run'}
    for name,script in scripts.items():
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'#!/bin/sh\n{script}\n')
        path.chmod(0o755)
    return lambda line: terminal('/bin/sh', '-c', line)

@each('start')
def test_a_start(line, shell):
    "The rest is stopped, as a person stops it."
    screen = shell(line)
    screen.expect(r'NOT MNIST.*Epoch 1/15 :.*█.*\r1 +[0-9.]+ ')
    screen.sendintr()
    screen.expect(r'\nStopped after epoch \d+ of 15: nothing was saved\.\r\n$')

@each('whole')
def test_a_whole_run(line, shell):
    screen = shell(f'{line} --epochs 1')
    assert re.search(r'Epoch 1/1 :.*█.*\r1 +[0-9.]+ .*verdict      not judged', screen.read(), re.S)
    assert screen.wait() == 0

@each('test')
def test_tests(line, shell):
    "Of the tests, a few. They leave nothing: a folder may be read-only."
    assert '5 passed' in shell(f'{line} -n 0 tests/test_models.py -k fewer').read()
    assert not os.path.exists('.pytest_cache')

@each('load')
def test_loading(line, shell):
    shutil.copy('results/pictures/7.jpg', '.')
    step3.learner(pretrained=True, data='digits').export()
    assert shell(line.replace('FOLDER', '.')).read().split()[-1] == '7'

@each('differ')
def test_differing(line, shell):
    screen = shell(line)
    assert '"""Step' in screen.read()
    assert screen.wait() == 1

@pytest.mark.parametrize('option', options)
def test_options(option, monkeypatch, no_pictures):
    monkeypatch.setattr(sys, 'argv', ['step3.py', '--data', 'digits', '--epochs', '1', *option.split()])
    with pytest.raises(SystemExit, match='0'): runpy.run_path('step3.py', run_name='__main__')
    folder, = Path('runs').iterdir()
    assert option.split()[1] in folder.name

def test_onnx_block():
    code = next(block for block in blocks('python') if 'onnx' in block)
    learn = step3.learner(pretrained=True, data='digits')
    images,expected = learn.dls.valid_ds.x.cpu().numpy(),learn.get_preds()[0]
    names = dict(torch=torch, learn=learn)
    for n in (1, 360):
        names['images'] = images[:n]
        exec(code, names)
        assert close(torch.tensor(names['logits']).softmax(1), expected[:n], 1e-4)
