"""Any picture of a digit in MNIST's form: a photograph, a scan or a drawing.

    mnist_form('7.jpg')   # uint8 (28, 28)

The steps:
1. `grey_levels`: one channel, upright, not too large.
2. `light_ink`: paper, table and shade become 0, ink becomes light.
3. `digit_only`: frames, specks and noise become 0.
4. `mnist_form`: the digit is scaled to fit 20×20, and its centre of mass moved to the centre of 28×28.
"""
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, ImageStat
from scipy import ndimage


def grey_levels(image):
    "The grey levels of a picture, upright and on a plain ground, at most 255 pixels long."
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        grey,opaque = image.convert('RGBA').convert('LA').split()
        is_light = ImageStat.Stat(grey, opaque).mean[0] > 127
        ground = Image.new('L', image.size, 'black' if is_light else 'white')  # white strokes are seen, too
        image = Image.composite(grey, ground, opaque)
    if image.mode[0] not in 'IF': image = image.convert('L')  # I and F have more than 8 bits: L would clip them
    shrink = 1 + max(image.size)//256
    return np.asarray(image.convert('F').reduce(shrink))  # a block's average has less noise


def light_ink(grey):
    "How far a pixel stands out, with the ink made light. Paper, table and shade are about 0."
    side = min(grey.shape)
    local = grey - ndimage.uniform_filter(grey, side)
    skew = (local**3).sum()  # below 0: what stands out is dark
    if skew < 0: grey = -grey
    wide = np.pad(grey, side, 'edge')
    ground = ndimage.grey_opening(wide, side*3//4 + 1)  # loses all light things that are narrower than this
    return grey - ground[side:-side, side:-side]


def digit_only(light, contrast):
    "The digit with its soft edges; all else is 0. Ink stands out by `contrast` at least, and more than noise does."
    ink = light > light.max()/3
    rest = light[~ink]
    contrast = max(contrast, 3.5*rest.std())
    if not ink.any() or light[ink].mean() < rest.mean() + contrast:
        raise ValueError('there is no ink.')
    parts,_ = ndimage.label(ink, np.ones((3, 3)))  # diagonal neighbours belong together
    # Frames and tables lie along the rim, the digit reaches inside. If next to nothing does, the digit is at the rim.
    rim = 1 + min(ink.shape)//10
    inner = ink & np.isin(parts, parts[rim:-rim, rim:-rim])
    if inner.sum() > ink.sum()/5: ink = inner
    # Specks are small beside the largest part.
    size = np.bincount(parts.flat, ink.flat)
    ink = size[parts] > size.max()/10
    soft = ndimage.binary_dilation(ink, iterations=2)
    noise = 2*np.median(rest)
    return np.where(soft, light - noise, 0).clip(0)


def mnist_form(o):
    """The digit of a picture, a file or PIL image of any size and mode, in MNIST's form: uint8 (28, 28), light ink on
    0, scaled to fit 20×20, centre of mass on (14, 14) (LeCun et al. 1998, "Gradient-Based Learning Applied to Document
    Recognition", section III-A). Without ink it raises a `ValueError`."""
    if isinstance(o, Image.Image): grey = grey_levels(o)
    else:
        with Image.open(o) as image: grey = grey_levels(image)
    light = digit_only(light_ink(grey), contrast=grey.max()/32)
    # Its box, scaled to fit 20×20.
    image = Image.fromarray(light)
    image = image.crop(image.getbbox())
    scale = 20/max(image.size)
    size = [max(1, round(scale*n)) for n in image.size]
    x = np.asarray(image.resize(size)).clip(0)
    x = 255/x.max()*x
    x = x.round().astype(np.uint8)
    # The 28×28 pixels around its centre of mass.
    top,left = [round(c) for c in ndimage.center_of_mass(x)]
    x = np.pad(x, 14)[top:top+28, left:left+28]
    return torch.tensor(x)


def is_picture(o): return isinstance(o, (str, Path, Image.Image)) or hasattr(o, 'read')

def from_picture(o):
    "`mnist_form`; one line says what is wrong with a picture."
    try: return mnist_form(o)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as e:
        name = str(o).replace('\n', ' ')[:200]  # a data URL has thousands of characters
        reason = getattr(e, 'strerror', None) or e
        raise ValueError(f'{name}: {reason}') from None

def from_array(o):
    "An array that has MNIST's form already, as uint8 (28, 28)."
    if o is None: raise ValueError('There is no picture, only None: draw or choose one first.')
    a = o.data.cpu().numpy() if isinstance(o, torch.Tensor) else np.asarray(o)
    a = a.squeeze()  # without the axis of its one channel
    whole = a.dtype.kind in 'iu' and a.shape == (28, 28)
    if whole and 0 <= a.min() and 128 <= a.max() <= 255 and a.mean() < 128:
        return torch.tensor(a.astype(np.uint8))
    found = f'{a.dtype} {a.shape}'
    if a.size and a.dtype.kind in 'iuf': found += f' from {a.min():g} to {a.max():g}'
    raise ValueError(f'An array must be 28×28 whole numbers from 0 to 255, light ink on 0, not {found}. '
                     'Give a file, a PIL image, or an array such as learn.dls.valid_ds.x[0].')

def stack_items(items):
    """(images, labels or `None`) of what `predict` and `test_dl` pass: files and PIL images are brought into MNIST's
    form, arrays must have it. Pairs (picture, label), as in torchvision's datasets, give labels, too."""
    items = [items] if is_picture(items) else list(items)
    if not items: raise ValueError('The list is empty: there is no picture in it.')
    labels = None
    if isinstance(items[0], tuple):
        items,labels = zip(*items)
        labels = torch.tensor([int(label) for label in labels])
    images = [from_picture(o) if is_picture(o) else from_array(o) for o in items]
    return torch.stack(images)[:,None], labels
