"The data: what a batch holds, what is never touched, and files that are missing, damaged or of another data set."
import errno, gzip, os, socket, threading, time
from concurrent.futures import ThreadPoolExecutor
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from fastai.vision.all import Interpretation, TensorImageBW, load_learner
from filelock import FileLock
from torch.nn import functional as F

import data, step3
from conftest import close, project
from data import DigitImages, RandomWarp, mnist_dls

(train,labels),(test,_) = data.small_digits()
names = list(data.raw_md5)

def is_whole(dls): return len(dls.train_ds) == 1200

def refused(why, *args, **kwargs):
    with pytest.raises(data.CliError, match=why): mnist_dls(*args, **kwargs)

def pixels(dl):
    "All images of a loader, back to 0..255."
    return (torch.cat([x for x,_ in dl])*data.std + data.mean)*255

def test_only_training_images_are_augmented():
    dls = mnist_dls('digits', tfms=RandomWarp(scale=.5))
    with dls.train_ds.set_split_idx(1): plain = pixels(dls.train)
    seen = pixels(dls.train)
    assert close(pixels(dls.valid), test.float(), 1e-3)
    assert close(plain.mean(), train.float().mean(), 1e-3)
    assert not close(seen.mean(), plain.mean(), .1)
    assert seen[..., 0, 0].max() < 9  # padding is black

def test_every_training_image_once_an_epoch_in_a_new_order():
    dl = mnist_dls('digits', bs=359).train  # the last batch is a single image
    first,second = [torch.cat([y for _,y in dl]) for _ in range(2)]
    assert not torch.equal(first, second)
    assert second.bincount().tolist() == labels.bincount().tolist()

def test_the_order_follows_torchs_seed_alone():
    "Not `random`, which other threads use, too."
    def order(seed):
        torch.manual_seed(seed)
        return mnist_dls('digits').train.rng.getstate()
    first = order(0)
    assert order(0) == first != order(1)

def test_batches_are_made_lazily():
    "fastai hands over an endless stream for `unique`, and nothing to a worker without a batch."
    dls = mnist_dls('digits', device='cpu')  # CUDA tensors cannot go to a forked worker
    dls.train.show_batch(unique=True, max_n=4)
    assert len(list(dls.valid.new(num_workers=3))) == 2

def warp(x, **limits): return RandomWarp(**limits)(TensorImageBW(x), split_idx=0)

def test_every_image_is_warped_in_its_own_way():
    torch.manual_seed(0)
    x = F.pad(torch.ones(6, 1, 12, 4), (12, 12, 8, 8))
    for kind,limit in dict(degrees=20, shift=3, scale=.3, shear=.3, elastic=1).items():
        moved = warp(x, **{kind: limit})
        assert not close(moved[0], moved[1], .1)
        assert .6 < moved.sum()/x.sum() < 1.4

def test_shifts_are_in_pixels_and_rotations_in_degrees(monkeypatch):
    monkeypatch.setattr(torch.Tensor, 'uniform_', lambda self, low, high: self.fill_(high))  # the upper limit
    x = torch.rand(2, 1, 28, 28)
    assert close(warp(x, shift=3), F.pad(x[..., 3:, 3:], (0, 3, 0, 3)), 1e-4)
    assert close(warp(x, degrees=90), x.rot90(1, (2, 3)), 1e-3)

def test_folds_are_disjoint_and_leave_the_test_images_out(root):
    whole = mnist_dls(root).train_ds
    for i in range(6):
        fold = mnist_dls(root, fold=i+1)
        held = torch.arange(1200)//200 == i
        assert torch.equal(fold.valid_ds.x, whole.x[held])
        assert torch.equal(fold.train_ds.y, whole.y[~held])
    for wrong in (-1, 7, None): refused('0 to 6', root, fold=wrong)

def test_where_mnist_is_looked_for(root, monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert is_whole(mnist_dls(Path('~/root')))
    monkeypatch.setenv('MNIST_ROOT', '~/root')
    assert is_whole(mnist_dls())
    refused("not 'other'", 'other')  # a slip of the pen, not a folder to fill
    for there in (f'{tmp_path}/new', __file__, '~nobodi/x'):
        monkeypatch.setenv('MNIST_ROOT', there)
        refused(f'not in {there} and cannot be downloaded', 'mnist')

@pytest.fixture
def raw(root, monkeypatch):
    "The folder of the raw files, where 'auto' finds them."
    monkeypatch.setenv('MNIST_ROOT', str(root))
    return root/'MNIST'/'raw'

@pytest.mark.parametrize('name', names[1:])
def test_a_file_that_is_not_mnists_is_named_and_never_replaced(raw, mirror, name):
    "Truncated, or with one wrong byte; also where another file is missing."
    path = raw/name
    good = path.read_bytes()
    (raw/names[0]).unlink()
    for bad in (good[:100], good[:-1] + b'?'):
        path.write_bytes(bad)
        refused(f"{path} is not MNIST's.*Move it away.*--data")
        assert path.read_bytes() == bad

@pytest.mark.parametrize('number', [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_folder_without_locks(raw, mirror, monkeypatch, number):
    "As on some network file systems. Missing files are downloaded, damaged ones are named."
    def flock(*args): raise OSError(number, os.strerror(number))
    monkeypatch.setattr('fcntl.flock', flock)
    (raw/names[0]).unlink()
    assert is_whole(mnist_dls())
    (raw/names[0]).write_bytes(b'')
    refused("is not MNIST's")

def test_a_missing_file_without_network(raw, capsys):
    (raw/names[3]).unlink()
    mnist_dls()
    assert f'Using {data.not_mnist}' in capsys.readouterr().err

class Slow(SimpleHTTPRequestHandler):
    def copyfile(self, *args):
        time.sleep(.05)
        super().copyfile(*args)

@pytest.fixture
def mirror(root, tmp_path, monkeypatch):
    "A slow mirror on the loopback address serves the packed files of `root` from the working directory."
    monkeypatch.chdir(tmp_path)
    for path in root.glob('MNIST/raw/*'): Path(f'{path.name}.gz').write_bytes(gzip.compress(path.read_bytes(), 1))
    monkeypatch.setattr(data.MNIST, 'resources', [(f'{name}.gz', None) for name in names])
    with ThreadingHTTPServer(('127.0.0.1', 0), Slow) as server:
        monkeypatch.setattr(data.MNIST, 'mirrors', [f'http://127.0.0.1:{server.server_port}/'])
        threading.Thread(target=server.serve_forever, args=[.01]).start()
        yield
        server.shutdown()

def test_five_first_runs_at_once(mirror, tmp_path, monkeypatch):
    monkeypatch.setenv('MNIST_ROOT', f'{tmp_path}/some/where')
    with ThreadPoolExecutor(5) as pool: runs = pool.map(mnist_dls, ['auto']*5)
    assert all(map(is_whole, runs))

def test_a_file_that_another_run_is_writing(raw):
    path = raw/names[3]
    good = path.read_bytes()
    path.write_bytes(good[:100])
    with ThreadPoolExecutor() as pool, FileLock(raw/'.lock'):
        run = pool.submit(mnist_dls)
        time.sleep(.1)
        path.write_bytes(good)
    assert is_whole(run.result())

def test_packed_files_without_network(mirror, raw):
    (raw/names[0]).unlink()
    for path in Path().glob('*.gz'): path.rename(raw/path.name)
    assert is_whole(mnist_dls())

def test_a_mirror_that_is_garbled_or_silent(mirror, raw, monkeypatch):
    (raw/names[0]).unlink()
    with monkeypatch.context() as m:
        m.setattr(Slow, 'do_GET', lambda request: request.wfile.write(b'?\r\n'))
        refused('^MNIST is not.*cannot be downloaded.*--data.$', 'mnist')
    monkeypatch.setattr(data, 'timeout', .01)
    refused('cannot be downloaded', 'mnist')
    assert socket.getdefaulttimeout() is None

def test_all_of_fastai_works():
    learn = step3.train(epochs=1, data='digits')
    for dl in learn.dls: dl.show_batch(max_n=4)
    learn.show_results(max_n=4)
    preds,truth = learn.get_preds()
    assert torch.equal(truth, learn.dls.valid_ds.y.cpu())
    assert not close(learn.tta(n=2)[0], preds)
    assert torch.equal(learn.get_preds()[0], preds)
    interp = Interpretation.from_learner(learn)
    interp.plot_top_losses(4)
    assert close(interp[[5]][1][0], preds[5])
    x = (learn.dls.valid_ds.x/255 - data.mean)/data.std
    assert close(learn.model(x).softmax(1), preds)  # the bare net is the whole inference

def test_arrays_in_mnists_form():
    dls = mnist_dls('digits')
    for items in (test[:2], test[:2, 0].numpy(), zip(test[:2], (7, 8))):
        assert torch.equal(dls.test_dl(items).dataset.x, test[:2])
    assert dls.test_dl([(test[0], 7)], with_labels=True).dataset.y.tolist() == [7]

bright = test[1]//2 + 127
others = [test[1]/255, test[1].int(), test[1, 0, 4:24], 255 - test[1], bright, '7.jpg', Path('7.jpg'), None]

@pytest.mark.parametrize('item', others, ids=lambda item: type(item).__name__)
def test_what_is_not_in_mnists_form_is_named(item):
    with pytest.raises(ValueError, match=r'^Item 1 .*mnist_form .* DigitImages\(x, y\)\.$'):
        mnist_dls('digits').test_dl([test[0], item])

def test_images_that_are_meant_to_look_otherwise():
    x,_ = mnist_dls('digits').test_dl(DigitImages(bright[None], labels[:1])).one_batch()
    assert x.mean() > 1

def test_export_takes_the_net_along_not_the_images(tmp_path):
    learn,file = step3.learner(pretrained=True, data='digits'),tmp_path/'net.pkl'
    learn.export(file)
    assert os.path.getsize(file) < 300_000
    with pytest.warns(UserWarning, match='insecure pickle'): again = load_learner(file)
    assert close(again.predict(test[0])[2], learn.predict(test[0])[2])

@pytest.mark.mnist
def test_real_mnist():
    x = mnist_dls('mnist').train_ds.x
    assert torch.std_mean(x/255) == pytest.approx((data.std, data.mean), abs=1e-4)
    inside = x[..., 2:-2, 2:-2]  # the 24×24 pixels that step 3 sees
    cut = (x.sum((1, 2, 3)) > inside.sum((1, 2, 3))).float().mean()
    text = (project/'results'/'README.md').read_text(encoding='utf-8')
    assert f'cuts off ink in {cut:.0%} of the training images' in text
