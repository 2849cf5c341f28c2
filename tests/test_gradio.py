"The lines for Gradio in USING.md, started as they stand and asked as a browser asks."
import re, socket, subprocess, sys, time

import pytest
from PIL import Image, ImageDraw

from conftest import project

gradio_client = pytest.importorskip('gradio_client', reason='no gradio: .ci/run installs it')

@pytest.fixture
def client(tmp_path, environment, monkeypatch):
    "A client of these lines, which run in a process of their own."
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    with socket.create_server(('127.0.0.1', 0)) as free: port = free.getsockname()[1]
    text = (project/'USING.md').read_text(encoding='utf-8')
    code, = re.findall(r'```python\n(import gradio\n.*?)```', text, re.S)
    environment.update(GRADIO_SERVER_NAME='127.0.0.1', GRADIO_SERVER_PORT=str(port), GRADIO_ANALYTICS_ENABLED='False',
                       no_proxy='127.0.0.1')
    log = tmp_path/'log'
    with log.open('w') as output:
        line = [sys.executable, '-c', code]
        server = subprocess.Popen(line, cwd=tmp_path, env=environment, stdout=output, stderr=output)
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

def test_a_sketch_is_read(client, tmp_path):
    path = tmp_path/'sketch.png'
    blank = Image.new('RGBA', (400, 400))
    seven = blank.copy()
    ImageDraw.Draw(seven).line([(120, 80), (280, 80), (180, 330)], 'black', 16)
    answer = read(client, seven, path)
    assert str(answer['label']) == '7'
    assert len(answer['confidences']) == 3
    for nothing in (blank, None):
        with pytest.raises(Exception, match='Draw a digit first'): read(client, nothing, path)
    text = (tmp_path/'log').read_bytes().decode()
    for word in ('Traceback', '\r', '█', '%'): assert word not in text
