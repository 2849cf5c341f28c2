"The data: what a batch holds, what is never touched, and files that are missing, damaged or of another data set."
import gzip, hashlib, os, random
import shutil, socket, threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from fastai.vision.all import ClassificationInterpretation, get_c, load_learner
from fastai.vision.all import Tensor, TensorCategory, TensorImageBW
from fastcore.script import CliError
from torch.nn import functional as F

import data, step1, step3
from conftest import close, project
from data import RandomWarp, clean_train, load_digits, mnist_dls, not_mnist

def pixels(dl):
    "All images of a loader, back to 0..255, and all labels."
    x,y = (torch.cat(part).as_subclass(Tensor).cpu() for part in zip(*dl))
    return (x*data.std + data.mean)*255, y

def test_shapes_types_normalization():
    dls = mnist_dls('digits', bs=64)
    x,y = dls.one_batch()
    assert type(x) is TensorImageBW and type(y) is TensorCategory
    assert x.shape == (64, 1, 28, 28)
    assert y.shape == (64,)
    assert x.dtype == torch.float32 and y.dtype == torch.int64
    assert dls.c == get_c(dls) == 10
    (train,labels),_ = load_digits()
    assert train.dtype == torch.uint8
    assert train.min() == 0
    assert train.max() == 255
    x,y = pixels(clean_train(dls))
    assert close(x, train.float(), 1e-3)
    assert torch.equal(y, labels)

def test_every_training_image_once_an_epoch_in_a_new_order():
    dls = mnist_dls('digits', bs=100)
    (_,first),(_,second) = pixels(dls.train),pixels(dls.train)
    (_,labels),_ = load_digits()
    assert not torch.equal(first, second)
    for seen in (first, second): assert torch.equal(seen.sort()[0], labels.sort()[0])

def test_the_order_follows_torchs_seed_alone(monkeypatch):
    "Not what other threads draw from `random` while the images are read."
    def order(seed): return step1.learner(data='digits', seed=seed).dls.train.rng.getstate()
    before,read = order(0),data.read
    monkeypatch.setattr(data, 'read', lambda asked: random.random() and read(asked))
    assert order(0) == before != order(1)

def test_a_last_batch_of_one_image_is_trained_on():
    learn = step1.learner(bs=359, data='digits')  # 4·359 + 1
    assert [len(y) for _,y in learn.dls.train] == [359]*4 + [1]
    learn.fit(1)

def test_test_images_are_never_augmented():
    warped = mnist_dls('digits', tfms=RandomWarp(45, 5, .5, .5, 3))
    (train,_),(test,_) = load_digits()
    assert close(pixels(warped.valid)[0], test.float(), 1e-3)
    assert close(pixels(clean_train(warped))[0], train.float(), 1e-3)
    seen,_ = pixels(warped.train)
    assert abs(seen.sum()/train.sum() - 1) > .01

def test_the_bare_net_on_normalized_images_is_the_whole_inference():
    learn = step3.train(epochs=2, data='digits')
    x = (learn.dls.valid_ds.x/255 - data.mean)/data.std
    with torch.no_grad(): bare = learn.model.eval()(x).softmax(1)
    assert close(bare, learn.get_preds()[0])

def test_batches_are_made_lazily():
    "fastai hands over an endless stream for `unique`, and nothing to a worker without a batch."
    dls = mnist_dls('digits', bs=4, device='cpu')  # CUDA tensors cannot go to a forked worker
    first = next(dls.train.create_batches(iter(int, 1)))
    assert first[0].shape == (4, 1, 28, 28)
    dls.train.show_batch(unique=True)
    assert len(list(dls.valid.new(num_workers=3))) == 2

def test_float64():
    torch.set_default_dtype(torch.float64)
    try: assert step3.train(epochs=1, data='digits').get_preds()[0].dtype == torch.float64
    finally: torch.set_default_dtype(torch.float32)

def warp(x, **limits): return RandomWarp(**limits)(TensorImageBW(x.clone()), split_idx=0)

@pytest.mark.parametrize('kind, limit', [
    ('degrees', 20),
    ('shift', 3),
    ('scale', .3),
    ('shear', .3),
    ('elastic', 1)])
def test_warp_moves_every_image_its_own_way(kind, limit):
    torch.manual_seed(0)
    x = torch.zeros(6, 1, 28, 28)
    x[:, :, 8:20, 12:16] = 1
    moved = warp(x, **{kind: limit})
    assert not close(moved, x, .1)
    assert not close(moved[0], moved[1], .1)
    assert moved.min() >= 0
    assert moved.max() <= 1 + 1e-5
    ink = moved.sum()/x.sum()
    assert .6 < ink < 1.4
    assert close(warp(x), x)

def test_shifts_are_in_pixels_and_rotations_in_degrees(monkeypatch):
    monkeypatch.setattr(torch.Tensor, 'uniform_', lambda self, low, high: self.fill_(high))  # the upper limit
    monkeypatch.setattr(torch.Tensor, 'normal_', lambda self: self.fill_(1))
    x = torch.rand(2, 1, 28, 28)
    shifted = F.pad(x[..., 3:, 3:], (0, 3, 0, 3))
    assert close(warp(x, shift=3), shifted, 1e-4)
    assert close(warp(x, elastic=3), shifted, 1e-4)
    twice = F.interpolate(x[..., 6:22, 6:22], scale_factor=2, mode='bilinear')
    assert close(warp(x, scale=1), twice[..., 2:-2, 2:-2], 1e-4)
    assert close(warp(x, degrees=90), x.rot90(1, (2, 3)), 1e-3)

def test_folds_are_disjoint_and_leave_the_test_images_out(root):
    whole = mnist_dls(root)
    x,y = whole.train_ds.x,whole.train_ds.y
    assert len(x) == 1200 and len(whole.valid_ds) == 300
    for i in range(6):
        fold = mnist_dls(root, fold=i+1)
        held = slice(200*i, 200*(i+1))
        assert torch.equal(fold.valid_ds.x, x[held])
        assert torch.equal(fold.valid_ds.y, y[held])
        assert torch.equal(fold.train_ds.x, torch.cat([x[:held.start], x[held.stop:]]))
        assert len(fold.train_ds.y) == 1000
    for wrong in (0, 7, 2.5):
        with pytest.raises(CliError, match='1 to 6'): mnist_dls('digits', fold=wrong)

def test_where_mnist_is_looked_for(root, monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', str(tmp_path))
    for there in (root, '~/root', Path('~/root')):
        assert len(mnist_dls(there).train_ds) == 1200
        monkeypatch.setenv('MNIST_ROOT', str(there))
        assert len(mnist_dls('mnist').train_ds) == 1200
    with pytest.raises(CliError, match="not 'other'"): mnist_dls('other')  # a slip of the pen, not a folder to fill
    (tmp_path/'file').write_text('')
    for there in (str(tmp_path/'new'), str(tmp_path/'file'), '~nobody/x', ''):
        monkeypatch.setenv('MNIST_ROOT', there)
        with pytest.raises(CliError, match=f'not in .*{Path(there).name}.* cannot be downloaded'): mnist_dls('mnist')

def test_without_a_home_directory(monkeypatch, tmp_path):
    def no_home(path): raise RuntimeError('Could not determine home directory.')
    monkeypatch.setattr(data, 'fastai_path', no_home)
    monkeypatch.setattr(data.MNIST, 'mirrors', ['http://127.0.0.1:9/'])
    monkeypatch.delenv('MNIST_ROOT', raising=False)
    monkeypatch.chdir(tmp_path)
    assert len(mnist_dls('auto').train_ds) == 1437

raw_files = list(data.raw_md5)

@pytest.fixture
def at_root(root, monkeypatch): monkeypatch.setenv('MNIST_ROOT', str(root))

@pytest.mark.parametrize('name', raw_files)
def test_files_that_are_not_mnists_are_named_and_never_trained_on(at_root, root, name):
    "Truncated at any place, with a flipped bit, or of another data set."
    path = root/'MNIST'/'raw'/name
    good,rng = path.read_bytes(),np.random.default_rng(0)
    for at in (0, *rng.integers(0, len(good), 20)):
        flipped = bytearray(good)
        flipped[at] ^= 1 << rng.integers(8)
        for bad in (good[:at], flipped):
            path.write_bytes(bad)
            for asked in ('auto', 'mnist', root):
                with pytest.raises(CliError, match=f"{name} is not MNIST's: .*Move it away.*--data"): mnist_dls(asked)
            assert path.read_bytes() == bad

@pytest.mark.parametrize('name', raw_files)
def test_missing_file_without_network(at_root, root, name, capsys):
    (root/'MNIST'/'raw'/name).unlink()
    for asked in ('mnist', root):
        with pytest.raises(CliError, match='cannot be downloaded.*--data'): mnist_dls(asked)
    assert len(mnist_dls('auto').train_ds) == 1437
    assert f'Using {not_mnist}' in capsys.readouterr().err

@pytest.fixture
def mirror(root, tmp_path, monkeypatch):
    "The folder that a mirror on the loopback address serves, with the packed files of `root`."
    folder = tmp_path/'mirror'
    folder.mkdir()
    packed = {}
    for name in raw_files:
        content = gzip.compress((root/'MNIST'/'raw'/name).read_bytes())
        (folder/f'{name}.gz').write_bytes(content)
        packed[f'{name}.gz'] = hashlib.md5(content).hexdigest()
    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    with ThreadingHTTPServer(('127.0.0.1', 0), partial(Handler, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(data.MNIST, 'mirrors', [f'http://127.0.0.1:{server.server_port}/'])
        monkeypatch.setattr(data.MNIST, 'resources', list(packed.items()))
        yield folder
        server.shutdown()

def test_missing_files_are_downloaded(root, mirror, tmp_path, monkeypatch):
    monkeypatch.setenv('MNIST_ROOT', str(tmp_path/'some'/'where'))
    assert torch.equal(mnist_dls('auto').train_ds.x, mnist_dls(root).train_ds.x)

def test_packed_files_are_unpacked_without_network(root, mirror, monkeypatch):
    raw = root/'MNIST'/'raw'
    for name in raw_files:
        (raw/name).unlink()
        shutil.copy(mirror/f'{name}.gz', raw)
    monkeypatch.setattr(data.MNIST, 'mirrors', ['http://127.0.0.1:9/'])
    assert len(mnist_dls(root).train_ds) == 1200

@pytest.mark.parametrize('fault', ['html', 'checksum', 'silent', 'garbage'])
def test_bad_downloads(mirror, tmp_path, fault, monkeypatch, capsys):
    def garble(self, *args): self.wfile.write(b'?\r\n')
    monkeypatch.setattr(data, 'timeout', .5)
    monkeypatch.setenv('MNIST_ROOT', str(tmp_path/'new'))
    path = mirror/f'{raw_files[1]}.gz'
    good = path.read_bytes()
    with socket.create_server(('127.0.0.1', 0)) as silent, monkeypatch.context() as m:
        if fault == 'garbage': m.setattr(SimpleHTTPRequestHandler, 'send_response_only', garble)
        if fault == 'html': path.write_text('<html>Please log in</html>')
        if fault == 'checksum': path.write_bytes(good[:-1] + b'?')
        if fault == 'silent': m.setattr(data.MNIST, 'mirrors', [f'http://127.0.0.1:{silent.getsockname()[1]}/'])
        with pytest.raises(CliError, match='cannot be downloaded.*by --data.$') as e: mnist_dls('mnist')
        assert len(str(e.value).splitlines()) == 1
        assert len(mnist_dls('auto').train_ds) == 1437
        assert 'NOT MNIST' in capsys.readouterr().err
    assert socket.getdefaulttimeout() is None
    path.write_bytes(good)
    assert len(mnist_dls('mnist').train_ds) == 1200  # what was left by the fault does no harm

def test_all_of_fastai_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    learn = step3.train(epochs=2, data='digits')
    learn.dls.show_batch(max_n=4)
    learn.dls.valid.show_batch(max_n=4)
    learn.show_results(max_n=4)
    learn.recorder.plot_loss()
    preds,truth = learn.get_preds()
    assert torch.equal(truth, learn.dls.valid_ds.y.cpu())
    augmented,same = learn.tta(n=2)
    assert torch.equal(same, truth) and not close(augmented, preds)
    again,_ = learn.get_preds()
    assert torch.equal(again, preds)
    interp = ClassificationInterpretation.from_learner(learn)
    assert interp.confusion_matrix().sum() == 360
    interp.plot_top_losses(4)
    worst = int(interp.top_losses(1)[1])
    assert close(interp[[worst]][1][0], preds[worst])

def test_export_takes_the_net_along_not_the_images(tmp_path):
    learn = step3.train(epochs=1, data='digits')
    learn.path = tmp_path
    learn.export('net.pkl')
    assert os.path.getsize(tmp_path/'net.pkl') < 300_000
    with pytest.warns(UserWarning, match='insecure pickle'): again = load_learner(tmp_path/'net.pkl')
    x = learn.dls.valid_ds.x[0].cpu()
    assert close(again.predict(x)[2], learn.predict(x)[2])
    with again.no_bar(): assert again.validate() == [None, None]

@pytest.mark.mnist
def test_real_mnist():
    whole,held = mnist_dls('mnist'),mnist_dls('mnist', fold=6)
    x = whole.train_ds.x
    assert len(x) == 60_000 and len(whole.valid_ds) == 10_000
    assert torch.equal(held.valid_ds.x, x[50_000:])
    assert torch.equal(held.train_ds.x, x[:50_000])
    scaled = x/255
    assert abs(scaled.mean() - data.mean) < 1e-4
    assert abs(scaled.std() - data.std) < 1e-4
    inside = x[..., 2:-2, 2:-2]  # the 24×24 pixels that step 3 sees
    cut = (x.sum((1, 2, 3)) > inside.sum((1, 2, 3))).float().mean()
    assert f'cuts off ink in {cut:.0%} of the digits' in (project/'results'/'README.md').read_text(encoding='utf-8')
