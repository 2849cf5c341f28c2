"""Any picture of a digit in MNIST's form: a photograph, a scan or a drawing.

    mnist_form('7.jpg')                  # uint8 (28, 28)
    learn.predict(mnist_form('7.jpg'))   # a fastai learner of this project's steps

The steps:
1. `grey_levels`: one channel, upright, not too large.
2. `light_ink`: paper, table and shade become 0, ink becomes light.
3. `digit_only`: frames, specks and noise become 0.
4. `mnist_form`: the digit is scaled to fit 20×20, and its centre of mass moved to the centre of 28×28.

The fractions below, such as `light.max()/3`, were found by hand on some photographs.
"""
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
    "The digit with its soft edges; all else is 0. Ink stands out by `contrast` at least, and more than noise."
    ink = light > light.max()/3
    rest = light[~ink]
    contrast = max(contrast, 3.5*rest.std())
    least = rest.mean() + contrast
    if not ink.any() or light[ink].mean() < least: return np.zeros_like(light)
    parts,_ = ndimage.label(ink, np.ones((3, 3)))  # diagonal neighbours belong together
    # Frames and tables lie along the rim, the digit reaches inside. If next to nothing does, the digit is at the rim.
    rim = 1 + min(ink.shape)//10
    inside = parts[rim:-rim, rim:-rim]
    inner = ink & np.isin(parts, inside)
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
    Recognition", section III-A). Without ink it raises a `ValueError`, and PIL's errors for what it cannot read."""
    if isinstance(o, Image.Image): grey = grey_levels(o)
    else:
        with Image.open(o) as image: grey = grey_levels(image)
    light = digit_only(light_ink(grey), contrast=grey.max()/32)
    if not light.any(): raise ValueError(f'{o}: there is no ink.')
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
