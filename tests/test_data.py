"The data: what a batch holds, what is never touched, and files that are missing or damaged."
import gzip, hashlib, http.server, os, shutil, tempfile, threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from fastai.vision.all import ClassificationInterpretation, Tensor, TensorCategory, TensorImageBW, load_learner, set_seed, tensor
from fastcore.script import CliError

import data, step3
from data import Deskew, RandomWarp, clean_train, load_digits, mnist_dls, not_mnist


def batches(dl): return [(x.as_subclass(Tensor), y.as_subclass(Tensor)) for x,y in dl]
def pixels(dl):
    "All images of a loader, back to 0..255, and all labels."
    x,y = (torch.cat(o) for o in zip(*batches(dl)))
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
    first,second = pixels(dls.train),pixels(dls.train)
    assert len(first[1]) == 1437 and not torch.equal(first[1], second[1])
    assert Counter(first[1].tolist()) == Counter(second[1].tolist()) == Counter(load_digits()[0][1].tolist())

def test_batches_follow_the_seed():
    def first(seed):
        set_seed(seed, reproducible=True)
        return batches(mnist_dls('digits', tfms=RandomWarp(8, 1, .1, .1, .5)).train)
    a,b,c = first(0),first(0),first(1)
    assert all(torch.equal(x, u) and torch.equal(y, v) for (x,y),(u,v) in zip(a, b))
    assert not torch.equal(a[0][0], c[0][0])

def test_no_training_batch_of_one_image():
    assert [len(y) for _,y in mnist_dls('digits', bs=4).train][-1] == 4 and len(mnist_dls('digits', bs=4).train) == 1437//4
    assert sum(len(y) for _,y in mnist_dls('digits', bs=5).train) == 1437

def test_test_images_are_never_augmented():
    plain,warped = mnist_dls('digits'),mnist_dls('digits', tfms=RandomWarp(45, 5, .5, .5, 3))
    for dl in ('valid', 'clean'):
        u,w = (clean_train(o) if dl == 'clean' else o.valid for o in (plain, warped))
        assert all(torch.equal(a, b) for a,b in zip(pixels(u), pixels(w)))
    assert torch.equal(pixels(warped.valid)[0], pixels(warped.valid)[0])
    assert not torch.allclose(pixels(warped.train)[0].sort(0)[0], pixels(plain.train)[0].sort(0)[0], atol=1)

def moments(x):
    "Brightness, centre of mass (x, y), covariance of x and y, and variance of y, in pixels, for each image (n, 1, h, w), one by one."
    found = []
    for image in x.as_subclass(Tensor)[:, 0]:
        p = image.double().flatten() / image.sum()
        y,x = (o.flatten().double() for o in torch.meshgrid(torch.arange(28), torch.arange(28), indexing='ij'))
        mx,my = p@x,p@y
        found.append((image.sum(), mx, my, p@((x - mx)*(y - my)), p@(y - my)**2))
    return tensor(found).T

def test_deskew_sets_every_image_upright():
    x = TensorImageBW(load_digits()[0][0][:300].float() / 255)
    before,after = moments(x),moments(Deskew()(x.clone(), split_idx=1))
    slant = [m[3]/m[4] for m in (before, after)]
    assert slant[0].abs().max() > .25 and slant[0].abs().mean() > .05  # the images need it
    assert slant[1].abs().max() < 1e-4
    assert torch.allclose(before[:3], after[:3], rtol=1e-4)  # ink and place stay

def test_deskew_shifts_rows_about_the_centre_of_mass():
    x = torch.zeros(1, 1, 28, 28)
    x[0, 0, range(6, 21), range(16, 1, -1)] = x[0, 0, range(6, 21), range(17, 2, -1)] = 1  # two pixels wide, one to the left per row
    upright = torch.zeros(1, 1, 28, 28)
    upright[:, :, 6:21, 9:11] = 1
    assert torch.allclose(Deskew()(TensorImageBW(x)), upright, atol=1e-4)

@pytest.mark.parametrize('x', [torch.zeros(2, 1, 28, 28), torch.eye(28)[13].expand(1, 1, 28, 28), torch.eye(28)[13].view(1, 1, 28, 1).expand(1, 1, 28, 28)],
                         ids=['black', 'column', 'row'])
def test_deskew_leaves_what_has_no_slant(x): assert torch.allclose(Deskew()(TensorImageBW(x.clone())), x, atol=1e-4)

def test_training_and_test_images_are_deskewed_alike():
    plain,upright = mnist_dls('digits'),mnist_dls('digits', tfms=[Deskew(), RandomWarp()])
    for dl in ('valid', 'clean'):
        x,want = (pixels(clean_train(o) if dl == 'clean' else o.valid)[0] for o in (upright, plain))
        assert torch.allclose(x, Deskew()(TensorImageBW(want)), atol=.01) and not torch.allclose(x, want, atol=10)
    seen = pixels(upright.train)[0].sum((2, 3)).sort(0)[0], pixels(clean_train(upright))[0].sum((2, 3)).sort(0)[0]
    assert torch.allclose(*seen, rtol=1e-3)

def test_warp_without_limits_changes_nothing():
    x = torch.rand(5, 1, 28, 28)
    assert torch.allclose(RandomWarp()(TensorImageBW(x), split_idx=0), x, atol=1e-5)

@pytest.mark.parametrize('kind, limit', [('degrees', 20), ('shift', 3), ('scale', .3), ('shear', .3), ('elastic', 1)])
def test_warp_moves_every_image_its_own_way(kind, limit):
    torch.manual_seed(0)
    x = torch.zeros(6, 1, 28, 28)
    x[:, :, 8:20, 12:16] = 1
    w = RandomWarp(**{kind: limit})(TensorImageBW(x.clone()), split_idx=0)
    assert not torch.allclose(w, x, atol=.1) and not torch.allclose(w[0], w[1], atol=.1)
    assert w.min() >= 0 and w.max() <= 1 + 1e-5 and abs(w.sum() / x.sum() - 1) < .4  # still the same amount of ink, about
    assert torch.equal(RandomWarp(**{kind: limit})(TensorImageBW(x), split_idx=1), x)

def test_shift_is_in_pixels(monkeypatch):
    monkeypatch.setattr(torch.Tensor, 'uniform_', lambda self, a, b: self.fill_(b))  # every draw at its upper limit
    x = torch.rand(2, 1, 28, 28)
    assert torch.allclose(RandomWarp(shift=3)(TensorImageBW(x), split_idx=0)[..., :-3, :-3], x[..., 3:, 3:], atol=1e-4)

def test_rotation_is_in_degrees(monkeypatch):
    monkeypatch.setattr(torch.Tensor, 'uniform_', lambda self, a, b: self.fill_(b))
    x = torch.rand(2, 1, 28, 28)
    turned = RandomWarp(degrees=90)(TensorImageBW(x), split_idx=0)
    assert any(torch.allclose(turned, torch.rot90(x, k, (2, 3)), atol=1e-3) for k in (1, 3))

def test_folds_are_disjoint_and_leave_the_test_images_out(root):
    whole,held = mnist_dls('mnist', root),[mnist_dls('mnist', root, fold=f) for f in range(1, 7)]
    assert (len(whole.train_ds), len(whole.valid_ds)) == (1200, 300)
    for f in held: assert (len(f.train_ds), len(f.valid_ds)) == (1000, 200)
    for part in ('x', 'y'):
        assert torch.equal(torch.cat([getattr(f.valid_ds, part) for f in held]), getattr(whole.train_ds, part))
        assert torch.equal(getattr(held[0].train_ds, part), getattr(whole.train_ds, part)[200:])
    assert 'fold 1' in held[0].valid_ds.name and 'test' in whole.valid_ds.name and whole.train_ds.name.startswith('MNIST')
    with pytest.raises(CliError, match='1 to 6'): mnist_dls('digits', fold=7)

def test_root_by_argument_then_environment(root, monkeypatch, tmp_path):
    monkeypatch.setenv('MNIST_ROOT', str(root))
    assert len(mnist_dls('mnist').train_ds) == 1200
    with pytest.raises(CliError): mnist_dls('mnist', tmp_path/'other')


raw_files = list(data.raw_md5)

@pytest.mark.parametrize('name', raw_files)
@pytest.mark.parametrize('asked', ['auto', 'mnist'])
def test_damaged_files_are_named_and_never_trained_on(root, name, asked):
    path = root/'MNIST'/'raw'/name
    good = path.read_bytes()
    rng = np.random.default_rng(0)
    for at in (0, *rng.integers(0, len(good), 20)):
        path.write_bytes(good[:at])                                                     # truncated
        with pytest.raises(CliError, match=f'{name} is corrupt.*Delete it'): mnist_dls(asked, root)
        path.write_bytes(good[:at] + bytes([good[at] ^ 1<<rng.integers(8)]) + good[at+1:])  # a flipped bit
        with pytest.raises(CliError, match=f'{name} is corrupt.*Delete it'): mnist_dls(asked, root)
    path.write_bytes(good)
    assert len(mnist_dls(asked, root).train_ds) == 1200

@pytest.mark.parametrize('name', raw_files)
def test_missing_file_without_network(root, name, capsys):
    (root/'MNIST'/'raw'/name).unlink()
    with pytest.raises(CliError, match='cannot be downloaded.*--root'): mnist_dls('mnist', root)
    dls = mnist_dls('auto', root)
    assert dls.train_ds.name.startswith(not_mnist) and len(dls.train_ds) == 1437
    assert 'NOT MNIST' in capsys.readouterr().err

def test_a_folder_in_place_of_a_file(root):
    path = root/'MNIST'/'raw'/raw_files[0]
    path.unlink()
    path.mkdir()
    with pytest.raises(CliError, match=raw_files[0]): mnist_dls('auto', root)

def test_unverified_files_of_old_torchvisions_are_not_used(root):
    old = root/'MNIST'/'processed'
    old.mkdir()
    for f in ('training.pt', 'test.pt'): torch.save((torch.zeros(9, 28, 28), torch.zeros(9)), old/f)
    assert len(mnist_dls('mnist', root).train_ds) == 1200

def test_unknown_source():
    with pytest.raises(CliError, match='cifar'): mnist_dls('cifar')

def labels_above_9(good): return good[:-1] + bytes([10])
def wrong_magic(good): return b'\0\0\7' + good[3:]
def wrong_count(good): return good[:7] + bytes([good[7] ^ 1]) + good[8:]

@pytest.mark.parametrize('damage', [labels_above_9, wrong_magic, wrong_count])
@pytest.mark.parametrize('name', raw_files)
def test_wrong_contents(root, name, damage):
    path = root/'MNIST'/'raw'/name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CliError, match=f'{name} is corrupt'): mnist_dls('auto', root)

def test_a_file_in_place_of_the_root(root, tmp_path):
    (tmp_path/'file').write_text('')
    for asked in ('auto', 'mnist'):
        with pytest.raises(CliError, match='file: .*--root'): mnist_dls(asked, tmp_path/'file')

@pytest.fixture
def bound(root):
    "A copy of `root` for a test that permissions bind: it runs as nobody where the tests run as root."
    if os.name != 'posix': pytest.skip('needs POSIX permissions')
    with tempfile.TemporaryDirectory() as where:  # pytest's own folders are closed to others
        os.chmod(where, 0o755)
        copy = Path(shutil.copytree(root, Path(where)/'root'))
        yield copy
        os.seteuid(os.getuid())
        for o in (copy, *copy.rglob('*')): o.chmod(0o755)

def become_nobody():
    if os.geteuid() == 0: os.seteuid(65534)

def test_no_permission(bound):
    (bound/'MNIST'/'raw'/raw_files[0]).chmod(0)
    become_nobody()
    for asked in ('auto', 'mnist'):
        with pytest.raises(CliError, match=f'{raw_files[0]}: Permission denied.*--root'): mnist_dls(asked, bound)

def test_read_only_root(bound, mirror):
    (bound/'MNIST'/'raw'/raw_files[0]).unlink()
    for o in (bound, *bound.rglob('*')): o.chmod(0o555)
    become_nobody()
    for asked in ('auto', 'mnist'):
        with pytest.raises(CliError, match='Permission denied.*--root'): mnist_dls(asked, bound)
    assert len(list(bound.rglob('*'))) == 2 + 3  # two folders, three files: nothing was left there


@pytest.fixture
def mirror(root, tmp_path, monkeypatch):
    "A mirror of `root` on the loopback address that serves it whole, or as `mirror.serve(name, wfile)` says."
    packed = {f'{f}.gz': gzip.compress((root/'MNIST'/'raw'/f).read_bytes()) for f in raw_files}
    class Mirror(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args): pass
        def do_HEAD(self): self.do_GET()
        def do_GET(self):
            name = self.path.strip('/')
            body = server.replaced.get(name, packed[name])
            if server.silent.is_set(): return server.leave.wait(30)
            self.send_response(200)
            self.send_header('Content-Length', str(len(packed[name]) if server.cut else len(body)))
            self.end_headers()
            if self.command == 'GET': self.wfile.write(body)
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Mirror) as server:
        server.replaced,server.cut,server.silent,server.leave = {},False,threading.Event(),threading.Event()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(data.MNIST, 'mirrors', [f'http://127.0.0.1:{server.server_port}/'])
        monkeypatch.setattr(data.MNIST, 'resources', [(f, hashlib.md5(b).hexdigest()) for f,b in packed.items()])
        server.packed = packed
        yield server
        server.leave.set()
        server.shutdown()

def test_missing_files_are_downloaded(root, mirror, tmp_path):
    new = tmp_path/'some'/'where'
    dls = mnist_dls('auto', new)
    assert torch.equal(dls.train_ds.x, mnist_dls('mnist', root).train_ds.x)
    assert [f.name for f in new.rglob('*') if f.is_file() and f.name not in raw_files] == [] and [f.name for f in new.iterdir()] == ['MNIST']

@pytest.mark.parametrize('fault', ['html', 'cut', 'checksum', 'silent'])
def test_bad_downloads(mirror, tmp_path, fault, monkeypatch, capsys):
    monkeypatch.setattr(data, 'patience', .5)
    name = f'{raw_files[1]}.gz'
    if fault == 'html': mirror.replaced[name] = b'<html>Please log in</html>'
    if fault == 'checksum': mirror.replaced[name] = mirror.packed[name][:-1] + b'?'
    if fault == 'cut': mirror.cut,mirror.replaced[name] = True,mirror.packed[name][:100]
    if fault == 'silent': mirror.silent.set()
    with pytest.raises(CliError, match='cannot be downloaded.*--root') as e: mnist_dls('mnist', tmp_path/'new')
    assert len(str(e.value).splitlines()) == 1
    assert mnist_dls('auto', tmp_path/'new').train_ds.name.startswith(not_mnist) and 'NOT MNIST' in capsys.readouterr().err
    assert not (tmp_path/'new').exists()

# For another process: the same mirror, and what it serves taken for MNIST.
mirrored = '''
import data
data.MNIST.mirrors,data.MNIST.resources,data.raw_md5 = {data.MNIST.mirrors!r},{data.MNIST.resources!r},{data.raw_md5!r}
'''

filling = mirrored + '''
from fastcore.script import CliError
for asked in ('auto', 'mnist'):
    try: data.mnist_dls(asked, 'full/new')
    except CliError as e: print(e)
'''

def test_full_disk(mirror, tmpfs):
    done = tmpfs('full', '100k', '-c', filling.format(data=data), after='ls -A full')
    assert done.stdout.splitlines() == ['full/new: No space left on device. Give a folder for MNIST that can be read and written by --root.']*2, done.stderr

at_once = mirrored + '''
import os
def child():
    pid = os.fork()
    if pid: return pid
    status = 1
    try: status = 0 if len(data.mnist_dls('mnist', 'new').train_ds) == 1200 else 2
    finally: os._exit(status)
print([os.waitpid(pid, 0)[1] for pid in [child() for _ in range(4)]])
'''

@pytest.mark.skipif(os.name != 'posix', reason='needs fork')
def test_downloads_into_the_same_root_at_once(root, mirror, run, tmp_path):
    done = run('-c', at_once.format(data=data), no_proxy='127.0.0.1')
    assert done.stdout.strip() == '[0, 0, 0, 0]', done.stderr
    assert [f.name for f in (tmp_path/'new').iterdir()] == ['MNIST']
    assert torch.equal(mnist_dls('mnist', tmp_path/'new').train_ds.x, mnist_dls('mnist', root).train_ds.x)


def test_fastai_shows_predicts_interprets_and_exports(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    learn = step3.train(epochs=2, data='digits')
    learn.dls.show_batch(max_n=4)
    learn.dls.valid.show_batch(max_n=4)
    learn.show_results(max_n=4)
    x = learn.dls.valid_ds.x
    label,index,probabilities = learn.predict(x[0, 0].numpy())
    with pytest.raises(ValueError, match='28×28'): learn.predict(torch.rand(28, 28))
    preds,truth = learn.get_preds()
    assert label == str(int(index)) == str(int(preds[0].argmax())) and torch.allclose(probabilities, preds[0], atol=1e-5)
    assert torch.equal(truth, learn.dls.valid_ds.y)
    interp = ClassificationInterpretation.from_learner(learn)
    assert interp.confusion_matrix().sum() == 360
    interp.plot_top_losses(4)
    worst = int(interp.top_losses(1)[1])
    assert torch.allclose(interp[[worst]][1][0], preds[worst], atol=1e-5)
    learn.export('net.pkl')
    assert (learn.path/'net.pkl').stat().st_size < 300_000  # the net, not the images
    with pytest.warns(UserWarning, match='insecure pickle'): again = load_learner(learn.path/'net.pkl')
    assert again.predict(x[0, 0].numpy())[0] == label


@pytest.mark.mnist
def test_real_mnist():
    whole,held = mnist_dls('mnist'),mnist_dls('mnist', fold=6)
    assert (len(whole.train_ds), len(whole.valid_ds), len(held.train_ds), len(held.valid_ds)) == (60_000, 10_000, 50_000, 10_000)
    x = whole.train_ds.x.float()/255
    assert abs(x.mean() - data.mean) < 1e-4 and abs(x.std() - data.std) < 1e-4
    assert torch.equal(torch.cat([held.train_ds.x, held.valid_ds.x]), whole.train_ds.x)
