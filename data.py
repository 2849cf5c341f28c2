"""MNIST in memory, served to fastai a whole batch at a time.

    dls = mnist_dls()                 # train on the 60,000 training images, evaluate on the 10,000 test images
    dls = mnist_dls(fold=6)           # evaluate on the last sixth of the training images, train on the other 50,000
    dls = mnist_dls(data='digits')    # the 1,797 small digits that scikit-learn bundles: not MNIST
    dls.show_batch()
"""
import contextlib, socket, warnings
from http.client import HTTPException

# A warning of fastai's own, at each import of it. The import also brings `torch`, `F`, `math`, `os` and the like.
warnings.filterwarnings('ignore', '`torch.jit.script` is deprecated', FutureWarning)

from fastai.vision.all import *
from fastcore.script import CliError
from filelock import FileLock
from sklearn.datasets import load_digits
from torchvision.datasets.mnist import MNIST, read_sn3_pascalvincent_tensor
from torchvision.datasets.utils import check_integrity

# MD5 of the four raw files: torchvision knows only those of the compressed ones.
raw_md5 = {'train-images-idx3-ubyte': '6bbc9ace898e44ae57da46a324031adb',
           'train-labels-idx1-ubyte': 'a25bea736e30d166cdddb491f175f624',
           't10k-images-idx3-ubyte':  '2646ac647ad5339dbf082846283269ea',
           't10k-labels-idx1-ubyte':  '27ae3e4e09519cfbb04c329615203637'}
not_mnist = "scikit-learn's 1,797 small digits (NOT MNIST)"
mean, std = 0.1307, 0.3081  # of the 60,000 training images, pixels scaled to [0, 1]
timeout = 20  # seconds without an answer from the network
test_bs = 250  # images per test batch: large enough for a GPU, small enough for a CPU's cache


# ---- Files -----------------------------------------------------------------------------------------------------------

def load_mnist(root):
    "MNIST's (images, labels) for training and for test. Files that are missing are unpacked or downloaded."
    raw = root/'MNIST'/'raw'
    def is_whole(name): return check_integrity(raw/name, raw_md5[name])
    if not all(map(is_whole, raw_md5)):
        with contextlib.ExitStack() as stack:
            # One run at a time: another one may be writing the files. A folder that is read-only may have no lock.
            with contextlib.suppress(OSError): stack.enter_context(FileLock(raw/'.lock'))
            for name in raw_md5:
                if (raw/name).exists() and not is_whole(name): raise CliError(
                    f"{raw/name} is not MNIST's: damaged, or of another data set. "
                    "Move it away and run again to get MNIST's, or give another folder by --data.")
            stack.callback(socket.setdefaulttimeout, socket.getdefaulttimeout())
            socket.setdefaulttimeout(timeout)
            MNIST(root, download=True)
    x,y,test_x,test_y = [read_sn3_pascalvincent_tensor(raw/name) for name in raw_md5]
    return (x[:,None], y.long()), (test_x[:,None], test_y.long())

def small_digits():
    "scikit-learn's 1,797 digits, 8×8, in MNIST's size: 20×20 in a frame of 28×28. The last 360 are for test."
    x,y = map(tensor, load_digits(return_X_y=True))
    x = x.view(-1, 1, 8, 8)*255/16
    x = F.pad(F.interpolate(x, size=20, mode='bilinear'), [4]*4).round().byte()
    return list(zip(x.split([1437, 360]), y.split([1437, 360])))

def load(data):
    "Training and test (images, labels) of what `data` asks for; warns when that is not MNIST."
    if data == 'digits': return small_digits()
    folder = data
    if data in ('auto', 'mnist'): folder = os.environ.get('MNIST_ROOT') or '~/.fastai/data'  # fastai's own place
    root = Path(os.path.expanduser(folder))
    if folder is data and not os.path.isdir(root/'MNIST'/'raw'):
        raise CliError(f"data is 'auto', 'mnist', 'digits' or a folder that holds MNIST/raw, not {str(data)!r}.")
    try: return load_mnist(root)
    except (RuntimeError, OSError, HTTPException) as e:
        reason = str(e).strip().rpartition('\n')[2]  # its last line
        why = f'MNIST is not in {root} and cannot be downloaded: {reason}'
    if data != 'auto': raise CliError(f'{why}. Connect to the network, or give a folder of MNIST/raw by --data.')
    print(f'*** {why}\n*** Using {not_mnist} instead.', file=sys.stderr)
    return small_digits()


# ---- Images ----------------------------------------------------------------------------------------------------------

class DigitImages:
    "Images `x`, uint8 (n, 1, 28, 28), and labels `y`, int64 (n,), in memory; indexed by a whole batch of positions."
    n_inp,c = 1,10
    vocab = CategoryMap(range(10), sort=False)

    # `split_idx` tells fastai's random transforms what the images are for: 0 to train, 1 to evaluate.
    def __init__(self, x, y=None, split_idx=1): store_attr()
    def __len__(self): return len(self.x)
    def __getitem__(self, idx):
        x = (self.x[idx]/255).as_subclass(TensorImageBW)
        if self.y is None: return (x,)
        return x, TensorCategory(self.y[idx])

    # What else fastai asks of a dataset: `show_batch` and `predict`, `Interpretation`, `export`, `tta`.
    def decode(self, item, full=True):
        x,*labels = item
        return (x, *[Category(self.vocab[label]) for label in labels])
    @property
    def items(self): return list(zip(self.x, self.y))
    def new_empty(self): return DigitImages(self.x[[]], self.y[[]])  # a copy: the view `x[:0]` would keep all images
    @contextmanager
    def set_split_idx(self, split_idx):
        return replacing_yield(self, 'split_idx', split_idx)


def as_image(item, n):
    "An array as uint8 (28, 28). Item `n` of a list must have MNIST's form: others would get confident wrong answers."
    x = np.asarray(item.cpu() if isinstance(item, Tensor) else item).squeeze()
    if x.dtype == np.uint8 and x.shape == (28, 28) and x.mean() < 128 <= x.max(): return tensor(x)
    raise ValueError(f"Item {n} is not in MNIST's form, uint8 (28, 28), light ink on 0, but {type(item).__name__} "
                     f'{x.dtype} {x.shape}. mnist_form of handwriting.py brings pictures and their files into it. '
                     'For images that are meant to look otherwise give DigitImages(x, y).')

def as_dataset(items):
    "`DigitImages` of what `predict` and `test_dl` pass: arrays in MNIST's form, or pairs (array, digit)."
    pairs = [item if isinstance(item, tuple) else (item,) for item in items]
    images,*labels = zip(*pairs)
    images = [as_image(image, n) for n,image in enumerate(images)]
    return DigitImages(torch.stack(images)[:,None], *map(tensor, labels))


# ---- Batches ---------------------------------------------------------------------------------------------------------

class BatchDL(TfmdDL):
    "A `TfmdDL` that asks its dataset once per batch, not once per item (as fastai's own `TabDataLoader` does)."
    def __init__(self, dataset, **kwargs):
        if not isinstance(dataset, DigitImages): dataset = as_dataset(dataset)
        super().__init__(dataset, **kwargs)
    # An item is only its position, `create_batch` gets them all. fastai passes `None` to see what an item is like.
    def do_item(self, i): return i or 0
    def create_batch(self, idxs): return self.dataset[idxs]


class RandomWarp(RandTransform):
    """Warps each training image of a batch (n, 1, w, w): an affine map and an elastic distortion, drawn for each image.

    For every pixel of the new image it computes a place (x, y) in the old one and reads the value there, 0 outside.
    The affine map is a 2×3 matrix A: place = A·(x, y, 1). Its first two columns rotate, scale and shear, the third one
    shifts. The elastic distortion moves the points of a 4×4 grid at random, and the pixels between them smoothly
    (after Simard et al. 2003, "Best Practices for Convolutional Neural Networks Applied to Visual Document Analysis",
    section 2).
    """
    order = 30  # where fastai's affine transforms stand: before `Normalize`, so that 0 is black

    def __init__(self, # Each draw is uniform, from minus to plus its limit, except `elastic`
        degrees=0., # Rotation, in degrees
        shift=0.,   # Shift along each axis, in pixels
        scale=0.,   # Change of size, as a fraction
        shear=0.,   # Horizontal shear, as a fraction
        elastic=0., # Shift of a grid point along each axis, in pixels: standard deviation of a normal distribution
    ):
        store_attr()
        super().__init__()

    def encodes(self, x:TensorImage):
        n,_,w,_ = x.shape
        x = x.as_subclass(Tensor)  # faster
        def draw(limit): return x.new_empty(n).uniform_(-limit, limit)

        turn,size,shear = draw(math.radians(self.degrees)), 1 + draw(self.scale), draw(self.shear)
        cos,sin = turn.cos()/size, turn.sin()/size  # a larger digit is read from places nearer to the middle
        affine = torch.stack([cos, shear-sin, draw(self.shift*2/w),  # x and y go from -1 to 1: a pixel is 2/w
                              sin, cos,       draw(self.shift*2/w)], 1).view(n, 2, 3)
        elastic = x.new_empty(n, 2, 16).normal_() * (self.elastic*2/w)

        # Each pixel's place is a weighted sum of the basis.
        place = torch.cat([affine, elastic], 2) @ warp_basis(w, x.device, x.dtype)  # (n, 2, 19) @ (19, w·w)
        place = place.view(n, 2, w, w).permute(0, 2, 3, 1)
        return F.grid_sample(x, place, align_corners=False).as_subclass(TensorImageBW)

@functools.cache
def warp_basis(w, device, dtype):
    """(19, w·w): x, y and 1 at every pixel, and 16 smooth bumps: each is 1 at one point of the elastic grid, 0 at the
    others. So one matrix product gives the places of a whole batch."""
    line = (torch.arange(w)*2 + 1)/w - 1  # the centres of pixels, from -1 to 1
    y,x = torch.meshgrid(line, line, indexing='ij')
    bumps = F.interpolate(torch.eye(16).view(1, 16, 4, 4), (w, w), mode='bicubic', align_corners=True)[0]
    return torch.stack([x, y, torch.ones_like(x), *bumps]).flatten(1).to(device, dtype)


def mnist_dls(
    data='auto', # 'mnist': MNIST or an error; 'digits': scikit-learn's; 'auto': digits where there is none; a folder
    bs=256,      # Images per training batch
    tfms=None,   # Transforms of a batch, such as `RandomWarp`
    fold=0,      # 1 to 6: evaluate on this sixth of the training images, train on the rest; 0: on the test images
    device=None  # Where images and net live; else CUDA where there is one, else the CPU
):
    "fastai `DataLoaders` of normalized images (bs, 1, 28, 28) and labels (bs,); only training images are warped."
    device = torch.device(device or ('cuda' if torch.cuda.is_available() else 'cpu'))
    train,test = to_device(load(data), device)
    if fold not in range(7): raise CliError(f'fold is a whole number from 0 to 6, not {fold!r}.')
    if fold:
        x,y = [list(o.tensor_split(6)) for o in train]
        test = x.pop(fold-1),y.pop(fold-1)
        train = torch.cat(x),torch.cat(y)
    train_ds = DigitImages(*train, split_idx=0)
    tfms = [*L(tfms), Normalize.from_stats(mean, std, cuda=False)]
    train_dl = BatchDL(train_ds, bs=bs, shuffle=True, num_workers=0, after_batch=tfms, device=device)
    # The order follows torch's seed alone. fastai draws its seed from `random`, which other threads use, too.
    draw = random.Random(torch.initial_seed()).randint(0, 2**32-1)
    train_dl.rng = random.Random(draw)
    test_dl = train_dl.new(DigitImages(*test), bs=test_bs, shuffle=False)
    return DataLoaders(train_dl, test_dl, device=device)
