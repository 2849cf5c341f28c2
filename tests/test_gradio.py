"The README's lines for Gradio, started as they stand and asked as a browser asks, in an environment of their own."
import os, re, socket, subprocess, sys, time

import pytest
from PIL import Image, ImageDraw

from conftest import offline, project

gradio_client = pytest.importorskip('gradio_client', reason='no gradio: .ci/run makes an environment for it')

@pytest.fixture
def log(tmp_path): return tmp_path/'log'

@pytest.fixture
def client(tmp_path, log, monkeypatch):
    "A client of the README's lines, which run in a process of their own."
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    readme = (project/'README.md').read_text(encoding='utf-8')
    blocks = re.findall(r'```python\n(.*?)```', readme, re.S)
    code, = [o for o in blocks if 'gradio' in o]
    path = os.pathsep.join([str(project), *sys.path])
    env = {**os.environ, **offline, 'PYTHONPATH': path, 'MNIST_ROOT': str(tmp_path)}
    env.update(GRADIO_SERVER_NAME='127.0.0.1', GRADIO_SERVER_PORT=str(port), GRADIO_ANALYTICS_ENABLED='False')
    with open(log, 'w') as output:
        server = subprocess.Popen([sys.executable, '-c', code], cwd=tmp_path, env=env, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 120
        while f':{port}' not in log.read_text():
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(.2)
        yield gradio_client.Client(f'http://127.0.0.1:{port}', verbose=False)
    finally:
        server.kill()
        server.wait()

def read(client, image, path):
    "The answer to a sketch. An untouched one is `None`."
    if image: image.save(path)
    composite = gradio_client.handle_file(path) if image else None
    sketch = dict(background=None, layers=[], composite=composite)
    return client.predict(sketch, api_name='/read')

def test_a_sketch_is_read(client, log, tmp_path):
    path = tmp_path/'sketch.png'
    blank = Image.new('RGBA', (400, 400))
    seven = blank.copy()
    ImageDraw.Draw(seven).line([(120, 80), (280, 80), (180, 330)], 'black', 16)
    answer = read(client, seven, path)
    assert str(answer['label']) == '7'
    assert len(answer['confidences']) == 3
    with pytest.raises(Exception, match='there is no ink'): read(client, blank, path)
    with pytest.raises(Exception, match='There is no picture'): read(client, None, path)
    text = log.read_bytes().decode()
    assert 'Traceback' not in text
    assert '\r' not in text
    assert '█' not in text
    assert '%' not in text
