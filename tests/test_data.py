"The data: what a batch holds, what is never touched, and files that are missing or damaged."
import gzip, hashlib, random, shutil, socket, threading
from collections import Counter
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from fastai.vision.all import ClassificationInterpretation, Tensor, TensorCategory, TensorImageBW, load_learner, set_seed, tensor
from fastcore.script import CliError
from torch.nn import functional as F

import data, step1, step3
from conftest import project
from data import RandomWarp, clean_train, load_digits, mnist_dls, not_mnist

def batches(dl): return [(x.as_subclass(Tensor), y.as_subclass(Tensor)) for x,y in dl]
def pixels(dl):
    "All images of a loader, back to 0..255, and all labels."
    x,y = (torch.cat(o).cpu() for o in zip(*batches(dl)))
    return (x*data.std + data.mean) * 255, y

def test_shapes_types_normalization():
    dls = mnist_dls('digits', bs=64)
    x,y = dls.one_batch()
    assert isinstance(x, TensorImageBW) and isinstance(y, TensorCategory)
    assert x.shape == (64, 1, 28, 28) and x.dtype == torch.float32 and y.shape == (64,) and y.dtype == torch.int64
    (train,labels),_ = load_digits()
    assert train.dtype == torch.uint8 and train.min() == 0 and train.max() == 255
    x,y = pixels(clean_train(dls))
    assert torch.allclose(x, train.float(), atol=1e-3) and torch.equal(y, labels)

def test_every_training_image_once_an_epoch_in_a_new_order():
    dls = mnist_dls('digits', bs=100)
    first,second = pixels(dls.train)[1],pixels(dls.train)[1]
    assert not torch.equal(first, second) and Counter(first.tolist()) == Counter(second.tolist()) == Counter(load_digits()[0][1].tolist())

def test_the_order_follows_torchs_seed_alone(monkeypatch):
    "Not what other threads draw from `random` while the images are read."
    before,read = step1.learner(data='digits').dls.train.rng.getstate(),data.read
    monkeypatch.setattr(data, 'read', lambda asked: random.random() and read(asked))
    assert step1.learner(data='digits').dls.train.rng.getstate() == before != step1.learner(data='digits', seed=1).dls.train.rng.getstate()

def test_a_last_batch_of_one_image_is_trained_on():
    learn = step1.learner(bs=359, data='digits')  # 4·359 + 1
    assert [len(y) for _,y in learn.dls.train] == [359]*4 + [1]
    learn.fit(1)

def test_test_images_are_never_augmented():
    plain,warped = mnist_dls('digits'),mnist_dls('digits', tfms=RandomWarp(45, 5, .5, .5, 3))
    for dl in ('valid', 'clean'):
        u,w = (clean_train(o) if dl == 'clean' else o.valid for o in (plain, warped))
        assert all(torch.equal(a, b) for a,b in zip(pixels(u), pixels(w)))
    assert torch.equal(pixels(warped.valid)[0], pixels(warped.valid)[0])
    assert not torch.allclose(pixels(warped.train)[0].sort(0)[0], pixels(plain.train)[0].sort(0)[0], atol=1)

def test_the_bare_net_on_normalized_images_is_the_whole_inference():
    learn = step3.train(epochs=2, data='digits')
    x = learn.dls.valid_ds.x
    with torch.no_grad(): bare = learn.model.eval()((x/255 - data.mean)/data.std).softmax(1)
    assert torch.allclose(bare.cpu(), learn.get_preds()[0].as_subclass(Tensor), atol=1e-5)

def test_batches_are_made_lazily():
    "fastai hands over an endless stream for `unique`, and nothing to a worker without a batch."
    dls = mnist_dls('digits', bs=4, device='cpu')  # CUDA tensors cannot go to a forked worker
    batches = dls.train.create_batches(iter(int, 1))
    assert next(batches)[0].shape == (4, 1, 28, 28)
    dls.train.show_batch(unique=True)
    assert len(list(dls.valid.new(num_workers=3))) == 2

@pytest.mark.parametrize('kind, limit', [('degrees', 20), ('shift', 3), ('scale', .3), ('shear', .3), ('elastic', 1)])
def test_warp_moves_every_image_its_own_way(kind, limit):
    torch.manual_seed(0)
    x = torch.zeros(6, 1, 28, 28)
    x[:, :, 8:20, 12:16] = 1
    w = RandomWarp(**{kind: limit})(TensorImageBW(x.clone()), split_idx=0)
    assert not torch.allclose(w, x, atol=.1) and not torch.allclose(w[0], w[1], atol=.1)
    assert w.min() >= 0 and w.max() <= 1 + 1e-5 and abs(w.sum() / x.sum() - 1) < .4  # still the same amount of ink, about
    assert torch.equal(RandomWarp(**{kind: limit})(TensorImageBW(x), split_idx=1), x)
    assert torch.allclose(RandomWarp()(TensorImageBW(x), split_idx=0), x, atol=1e-5)

def test_shifts_are_in_pixels_and_rotations_in_degrees(monkeypatch):
    monkeypatch.setattr(torch.Tensor, 'uniform_', lambda self, a, b: self.fill_(b))  # every draw at its upper limit
    monkeypatch.setattr(torch, 'randn', lambda *shape, device: torch.ones(shape))
    x = torch.rand(2, 1, 28, 28)
    for kind in ('shift', 'elastic'):
        moved = RandomWarp(**{kind: 3})(TensorImageBW(x), split_idx=0)
        assert torch.allclose(moved, F.pad(x[..., 3:, 3:], (0, 3, 0, 3)), atol=1e-4)
    half = RandomWarp(scale=1)(TensorImageBW(x), split_idx=0)  # twice the size
    assert torch.allclose(half, F.interpolate(x[..., 6:22, 6:22], scale_factor=2, mode='bilinear')[..., 2:-2, 2:-2], atol=1e-4)
    rotated = RandomWarp(degrees=90)(TensorImageBW(x), split_idx=0)
    assert any(torch.allclose(rotated, torch.rot90(x, k, (2, 3)), atol=1e-3) for k in (1, 3))

def test_folds_are_disjoint_and_leave_the_test_images_out(root):
    whole,held = mnist_dls(root),[mnist_dls(root, fold=f) for f in range(1, 7)]
    assert [(len(o.train_ds), len(o.valid_ds)) for o in (whole, *held)] == [(1200, 300)] + [(1000, 200)]*6
    for part in ('x', 'y'):
        assert torch.equal(torch.cat([getattr(f.valid_ds, part) for f in held]), getattr(whole.train_ds, part))
        assert torch.equal(getattr(held[0].train_ds, part), getattr(whole.train_ds, part)[200:])
    assert 'fold 1' in held[0].valid_ds.name and 'test' in whole.valid_ds.name and whole.train_ds.name.startswith('MNIST')
    for wrong in (0, 7, 2.5):
        with pytest.raises(CliError, match='1 to 6'): mnist_dls('digits', fold=wrong)

def test_where_mnist_is_looked_for(root, monkeypatch, tmp_path):
    monkeypatch.setenv('MNIST_ROOT', str(root))
    assert len(mnist_dls('mnist').train_ds) == len(mnist_dls(str(root)).train_ds) == 1200
    monkeypatch.setenv('HOME', str(root.parent))
    for there in ('~/root', Path('~/root')): assert len(mnist_dls(there).train_ds) == 1200
    monkeypatch.setenv('MNIST_ROOT', '~/root')
    assert len(mnist_dls('mnist').train_ds) == 1200
    with pytest.raises(CliError, match="not 'other'"): mnist_dls('other')  # a slip of the pen, not a folder to fill
    monkeypatch.setenv('MNIST_ROOT', str(tmp_path/'new'))
    with pytest.raises(CliError, match='cannot be downloaded'): mnist_dls('mnist')

raw_files = list(data.raw_md5)

@pytest.fixture
def at_root(root, monkeypatch): monkeypatch.setenv('MNIST_ROOT', str(root))

@pytest.mark.parametrize('name', raw_files)
def test_damaged_files_are_named_and_never_trained_on(at_root, root, name):
    path = root/'MNIST'/'raw'/name
    good,rng = path.read_bytes(),np.random.default_rng(0)
    for at in (0, *rng.integers(0, len(good), 20)):
        for bad in (good[:at], good[:at] + bytes([good[at] ^ 1<<rng.integers(8)]) + good[at+1:]):  # truncated; a flipped bit
            path.write_bytes(bad)
            for asked in ('auto', 'mnist', root):
                with pytest.raises(CliError, match=f'{name} is corrupt.*Delete it'): mnist_dls(asked)

@pytest.mark.parametrize('name', raw_files)
def test_missing_file_without_network(at_root, root, name, capsys):
    (root/'MNIST'/'raw'/name).unlink()
    for asked in ('mnist', root):
        with pytest.raises(CliError, match='cannot be downloaded.*--data'): mnist_dls(asked)
    dls = mnist_dls('auto')
    assert dls.train_ds.name.startswith(not_mnist) and len(dls.train_ds) == 1437
    assert 'NOT MNIST' in capsys.readouterr().err

def test_a_folder_in_place_of_a_file_and_a_file_in_place_of_the_root(root, tmp_path, monkeypatch):
    path = root/'MNIST'/'raw'/raw_files[0]
    path.unlink()
    path.mkdir()
    (tmp_path/'file').write_text('')
    for where,said in ((root, raw_files[0]), (tmp_path/'file', 'file.*--data')):
        monkeypatch.setenv('MNIST_ROOT', str(where))
        for asked in ('auto', 'mnist'):
            with pytest.raises(CliError, match=said): mnist_dls(asked)

@pytest.fixture
def mirror(root, tmp_path, monkeypatch):
    "The folder that a mirror on the loopback address serves, with the packed files of `root`."
    folder = tmp_path/'mirror'
    folder.mkdir()
    for name in raw_files: (folder/f'{name}.gz').write_bytes(gzip.compress((root/'MNIST'/'raw'/name).read_bytes()))
    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    with ThreadingHTTPServer(('127.0.0.1', 0), partial(Handler, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(data.MNIST, 'mirrors', [f'http://127.0.0.1:{server.server_port}/'])
        monkeypatch.setattr(data.MNIST, 'resources', [(f.name, hashlib.md5(f.read_bytes()).hexdigest()) for f in folder.iterdir()])
        yield folder
        server.shutdown()

def test_missing_files_are_downloaded(root, mirror, tmp_path, monkeypatch):
    monkeypatch.setenv('MNIST_ROOT', str(tmp_path/'some'/'where'))
    assert torch.equal(mnist_dls('auto').train_ds.x, mnist_dls(root).train_ds.x)

def test_packed_files_are_unpacked_without_network(root, mirror, monkeypatch):
    raw = root/'MNIST'/'raw'
    for name in raw_files: (raw/name).unlink(), shutil.copy(mirror/f'{name}.gz', raw)
    monkeypatch.setattr(data.MNIST, 'mirrors', ['http://127.0.0.1:9/'])
    assert len(mnist_dls(root).train_ds) == 1200

@pytest.mark.parametrize('fault', ['html', 'checksum', 'silent', 'garbage'])
def test_bad_downloads(mirror, tmp_path, fault, monkeypatch, capsys):
    monkeypatch.setattr(data, 'timeout', .5)
    monkeypatch.setenv('MNIST_ROOT', str(tmp_path/'new'))
    path = mirror/f'{raw_files[1]}.gz'
    good = path.read_bytes()
    with socket.create_server(('127.0.0.1', 0)) as silent, monkeypatch.context() as m:
        if fault == 'garbage': m.setattr(SimpleHTTPRequestHandler, 'send_response_only', lambda self, *args: self.wfile.write(b'?\r\n'))
        if fault == 'html': path.write_text('<html>Please log in</html>')
        if fault == 'checksum': path.write_bytes(good[:-1] + b'?')
        if fault == 'silent': m.setattr(data.MNIST, 'mirrors', [f'http://127.0.0.1:{silent.getsockname()[1]}/'])
        with pytest.raises(CliError, match='cannot be downloaded.*--data') as e: mnist_dls('mnist')
        assert len(str(e.value).splitlines()) == 1
        assert mnist_dls('auto').train_ds.name.startswith(not_mnist) and 'NOT MNIST' in capsys.readouterr().err
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
    x = learn.dls.valid_ds.x.cpu()
    preds,truth = learn.get_preds()
    assert torch.equal(truth, learn.dls.valid_ds.y.cpu())
    augmented,same = learn.tta(n=2)
    assert torch.equal(same, truth) and not torch.allclose(augmented, preds) and torch.equal(learn.get_preds()[0], preds)
    interp = ClassificationInterpretation.from_learner(learn)
    assert interp.confusion_matrix().sum() == 360
    interp.plot_top_losses(4)
    worst = int(interp.top_losses(1)[1])
    assert torch.allclose(interp[[worst]][1][0], preds[worst], atol=1e-5)
    assert learn.dls.train_ds.new_empty().y.untyped_storage().nbytes() == 0
    learn.export('net.pkl')
    assert (learn.path/'net.pkl').stat().st_size < 300_000  # the net, not the images
    with pytest.warns(UserWarning, match='insecure pickle'): again = load_learner(learn.path/'net.pkl')
    assert again.predict(x[0, 0].numpy())[0] == str(int(preds[0].argmax()))
    with again.no_bar(): assert again.validate() == [None, None]  # it took no images along

@pytest.mark.mnist
def test_real_mnist():
    whole,held = mnist_dls('mnist'),mnist_dls('mnist', fold=6)
    assert (len(whole.train_ds), len(whole.valid_ds), len(held.train_ds), len(held.valid_ds)) == (60_000, 10_000, 50_000, 10_000)
    x = whole.train_ds.x.float()/255
    assert abs(x.mean() - data.mean) < 1e-4 and abs(x.std() - data.std) < 1e-4
    x = whole.train_ds.x
    ink = (x.sum((1, 2, 3)) > x[..., 2:-2, 2:-2].sum((1, 2, 3))).float().mean()  # outside the 24×24 pixels that step 3 sees
    assert f'cuts off ink in {ink:.0%} of the digits' in (project/'results'/'README.md').read_text(encoding='utf-8')
    assert torch.equal(torch.cat([held.train_ds.x, held.valid_ds.x]), whole.train_ds.x)
