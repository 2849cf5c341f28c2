"""MNIST in memory, served to fastai a whole batch at a time.

    dls = mnist_dls()                 # train on 60,000, test on 10,000
    dls = mnist_dls(fold=6)           # train on 50,000, validate on the other 10,000 training images, the last sixth
    dls = mnist_dls(data='digits')    # the 1,797 small digits that scikit-learn bundles: not MNIST
    dls.show_batch()
"""
import contextlib, functools, os, socket, sys, warnings
from http.client import HTTPException

# fastai's own, at each import of it
warnings.filterwarnings('ignore', '`torch.jit.script` is deprecated', FutureWarning)

from fastai.vision.all import *
from fastcore.script import CliError
from torchvision.datasets import MNIST
from torchvision.datasets.mnist import read_image_file, read_label_file
from torchvision.datasets.utils import check_integrity

from handwriting import stack_items

# MD5 of the four raw IDX files: torchvision knows only those of the compressed ones.
raw_md5 = {'train-images-idx3-ubyte': '6bbc9ace898e44ae57da46a324031adb',
           'train-labels-idx1-ubyte': 'a25bea736e30d166cdddb491f175f624',
           't10k-images-idx3-ubyte':  '2646ac647ad5339dbf082846283269ea',
           't10k-labels-idx1-ubyte':  '27ae3e4e09519cfbb04c329615203637'}
not_mnist = "scikit-learn's 1,797 small digits (NOT MNIST)"
mean, std = 0.1307, 0.3081  # of the 60,000 training images, pixels scaled to [0, 1]
timeout = 20  # seconds without an answer from the network
test_bs = 250  # images per test batch: large enough for a GPU, small enough for a CPU's cache


# ---- Images and batches ----------------------------------------------------------------------------------------------

class DigitImages:
    "Images `x`, uint8 (n, 1, 28, 28), and labels `y`, int64 (n,), in memory; indexed by a whole batch of positions."
    n_inp,c = 1,10
    vocab = CategoryMap(range(10), sort=False)

    # `split_idx` tells fastai's random transforms what the images are for: 0 training, 1 validation.
    def __init__(self, x, y=None, split_idx=1): store_attr()
    def __len__(self): return len(self.x)
    def __getitem__(self, idx):
        x = (self.x[idx]/255).as_subclass(TensorImageBW)
        if self.y is None: return (x,)
        return x, TensorCategory(self.y[idx])

    # What else fastai asks of a dataset: `show_batch` and `predict`, `Interpretation`, `export`, `tta`.
    def decode(self, item, full=True):
        x,*labels = item
        return (x, *[Category(self.vocab[int(label)]) for label in labels])
    @property
    def items(self):
        pairs = self.x if self.y is None else zip(self.x, self.y)
        return L(pairs, use_list=True)
    def new_empty(self):
        return DigitImages(self.x[:0].clone(), self.y[:0].clone())  # a view would keep all images
    @contextlib.contextmanager
    def set_split_idx(self, split_idx):
        return replacing_yield(self, 'split_idx', split_idx)


class BatchDL(TfmdDL):
    "A `TfmdDL` that asks its dataset once per batch, not once per item (as fastai's own `TabDataLoader` does)."
    def __init__(self, dataset, num_workers=0, **kwargs):
        if not isinstance(dataset, DigitImages): dataset = DigitImages(*stack_items(dataset))
        super().__init__(dataset, num_workers=num_workers, **kwargs)
    def do_item(self, i): return i or 0  # fastai passes `None` to see what an item is like
    def create_batch(self, idxs): return self.dataset[tensor(idxs, device=self.dataset.x.device)]


class RandomWarp(RandTransform):
    """Warps each training image of a batch (n, 1, h, w) by its own affine map and elastic distortion, zero padding.

    Every draw is uniform between minus and plus its limit, except `elastic`: the standard deviation of normal
    displacements on a 4×4 grid, interpolated to a smooth field (after Simard et al. 2003, "Best Practices for
    Convolutional Neural Networks Applied to Visual Document Analysis", section 2).
    """
    order = 30  # where fastai's affine transforms stand: before `Normalize`, so that 0 is black

    def __init__(self,
        degrees=0., # Rotation, in degrees
        shift=0.,   # Shift along each axis, in pixels
        scale=0.,   # Change of size, as a fraction
        shear=0.,   # Horizontal shear, as a fraction
        elastic=0., # Elastic displacement, in pixels
        **kwargs
    ):
        store_attr()
        super().__init__(**kwargs)

    def encodes(self, x:TensorImage):
        n,_,h,w = x.shape
        x = x.as_subclass(Tensor)  # faster
        def draw(limit): return x.new_empty(n).uniform_(-limit, limit)

        turn,size,shear = draw(math.radians(self.degrees)), 1 + draw(self.scale), draw(self.shear)
        cos,sin = turn.cos()/size, turn.sin()/size
        affine = torch.stack([cos, shear-sin, draw(self.shift*2/w),  # from -1 to 1: a pixel is 2/w
                              sin, cos,       draw(self.shift*2/h)], 1).view(n, 2, 3)
        elastic = x.new_empty(n, 2, 16).normal_() * (self.elastic*2/w)

        source = torch.cat([affine, elastic], 2).view(2*n, 19) @ warp_basis(h, w, x.device, x.dtype)
        source = source.view(n, 2, h, w).permute(0, 2, 3, 1)  # where each pixel comes from
        return F.grid_sample(x, source, align_corners=False).as_subclass(TensorImageBW)

@functools.cache
def warp_basis(h, w, device, dtype):
    """(19, h·w): x, y and 1 at every pixel, from -1 to 1, and 16 smooth bumps, one for each point of the elastic grid.

    The source coordinates of a warp are a weighted sum of these. So one matrix product gives them for a whole batch,
    many times as fast as an affine grid and an interpolation for each image."""
    lines = ((torch.arange(side)*2 + 1)/side - 1 for side in (h, w))
    y,x = torch.meshgrid(*lines, indexing='ij')
    bumps = F.interpolate(torch.eye(16).view(1, 16, 4, 4), (h, w), mode='bicubic', align_corners=True)[0]
    return torch.stack([x, y, torch.ones_like(x), *bumps]).flatten(1).to(device, dtype)


# ---- The data sets ---------------------------------------------------------------------------------------------------

def download(root):
    "Let torchvision unpack or download what is missing of MNIST; it checks the MD5 of the packed files."
    was = socket.getdefaulttimeout()
    socket.setdefaulttimeout(timeout)
    try: MNIST(root, download=True)
    finally: socket.setdefaulttimeout(was)

def load_mnist(root):
    "MNIST's (images, labels) for training and for test. A file that is not MNIST's raises a `CliError` that names it."
    paths = [root/'MNIST'/'raw'/name for name in raw_md5]
    for path in paths:
        if path.exists() and not check_integrity(path, raw_md5[path.name]): raise CliError(
            f"{path} is not MNIST's: damaged, or of another data set. "
            "Move it away and run again to get MNIST's, or give another folder by --data.")
    if not all(path.exists() for path in paths): download(root)
    x,y,test_x,test_y = paths
    return (read_image_file(x)[:,None], read_label_file(y)), (read_image_file(test_x)[:,None], read_label_file(test_y))


def load_digits():
    "scikit-learn's 1,797 digits, 8×8, in MNIST's size: 20×20 in a frame of 28×28. The last 360 are for test."
    from sklearn.datasets import load_digits
    digits = load_digits()
    x,y = tensor(digits.images).float()[:,None] * (255/16), tensor(digits.target).long()
    x = F.pad(F.interpolate(x, size=20, mode='bilinear'), (4, 4, 4, 4)).round().byte()
    return (x[:-360], y[:-360]), (x[-360:], y[-360:])


def default_root():
    "Where MNIST is looked for, and downloaded to, when no folder is given."
    try: return os.environ.get('MNIST_ROOT') or fastai_path('data')
    except RuntimeError: return '.'  # there is no home directory

def mnist_root(data):
    "The folder that holds MNIST/raw, or will hold it when `data` is 'auto' or 'mnist'."
    given = data not in ('auto', 'mnist')
    root = Path(os.path.expanduser(data if given else default_root()))
    if given and not (root/'MNIST'/'raw').is_dir():
        raise CliError(f"data is 'auto', 'mnist', 'digits' or a folder that holds MNIST/raw, not {str(data)!r}.")
    return root

def read(data):
    "Training and test (images, labels) of what `data` asks for; warns when that is not MNIST."
    if data == 'digits': return load_digits()
    root = mnist_root(data)
    try: return load_mnist(root)
    except (RuntimeError, OSError, HTTPException) as e:
        reason = str(e).strip().rpartition('\n')[2]  # its last line
        why = f'MNIST is not in {root} and cannot be downloaded: {reason}'
    if data != 'auto': raise CliError(f'{why}. Connect to the network, or give a folder of MNIST/raw by --data.')
    print(f'*** {why}\n*** Using {not_mnist} instead.', file=sys.stderr)
    return load_digits()


def mnist_dls(
    data='auto', # 'mnist': MNIST or an error; 'digits': scikit-learn's; 'auto': digits where there is none; a folder
    bs=256,      # Images per training batch
    tfms=None,   # Transforms of a batch, such as `RandomWarp`
    fold=None,   # 1 to 6: validate on this sixth of the training images, train on the rest; None: train and test images
    device=None  # Where images and net live; else CUDA where there is one, else the CPU
):
    "fastai `DataLoaders` of normalized images (bs, 1, 28, 28) and labels (bs,); only training images are augmented."
    device = torch.device(device or ('cuda' if torch.cuda.is_available() else 'cpu'))
    train,test = read(data)
    if fold is not None:
        if fold not in range(1, 7): raise CliError(f'fold is a whole number from 1 to 6, not {fold!r}.')
        held = torch.arange(len(train[0]))*6 // len(train[0]) == fold-1  # contiguous
        train,test = [o[~held] for o in train],[o[held] for o in train]
    train_ds = DigitImages(*(o.to(device) for o in train), split_idx=0)
    test_ds  = DigitImages(*(o.to(device) for o in test),  split_idx=1)
    tfms = [*L(tfms), Normalize.from_stats([mean], [std], cuda=False)]
    train_dl = BatchDL(train_ds, bs=bs, shuffle=True, after_batch=tfms, device=device)
    # fastai draws the seed of the order from `random`, which other threads use, too. The same draw, by torch's seed:
    order_seed = random.Random(torch.initial_seed()).randint(0, 2**32-1)
    train_dl.rng = random.Random(order_seed)
    return DataLoaders(train_dl, train_dl.new(test_ds, bs=test_bs, shuffle=False), device=device)

def clean_train(dls):
    "A loader over the training images of `dls` in order, without augmentation."
    return dls.valid.new(DigitImages(dls.train_ds.x, dls.train_ds.y))
