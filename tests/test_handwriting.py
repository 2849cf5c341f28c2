"Pictures: MNIST's form from any file or PIL image, and an error for what is no digit."
import io

import numpy as np
import pytest
import torch
from fastai.vision.all import PILImageBW
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont, ImageOps
from scipy import ndimage

import evidence, step3
from handwriting import mnist_form

def blank(*size): return Image.new('L', size, 'white')

def printed(digit=7, size=(280, 280), at=(140, 140), height=235, bold=0, turn=0):
    "A digit, black on white."
    image = blank(*size)
    draw = ImageDraw.Draw(image)
    text = '0I23456789'[digit]  # a bare stroke: the font's 1 has a flag that MNIST's lack
    font = ImageFont.load_default(height)
    draw.text(at, text, 'black', font, anchor='mm', stroke_width=bold)
    return image.rotate(turn, Image.BICUBIC, fillcolor='white')

def saved(image, suffix):
    "An open file that holds the image."
    file = io.BytesIO()
    image.save(file, suffix)
    return file

def photographed(image, seed=0, shade=35, noise=10):
    "A black-on-white image as grey ink on shaded paper, with noise."
    rng = np.random.default_rng(seed)
    paper = 215 - np.linspace(0, 2*shade, image.width)
    white = np.asarray(image)/255
    photo = 30 + white*(paper - 30)
    photo += rng.normal(0, noise, photo.shape)
    return Image.fromarray(np.uint8(photo.clip(0, 255)))

def apart(a, b): return (a.float() - b.float()).abs().mean()

def check_form(x):
    assert x.shape == (28, 28)
    assert x.dtype == torch.uint8 and x.max() == 255
    x = x.numpy()
    size = max(np.ptp(axis) for axis in np.nonzero(x))
    assert size in (18, 19)  # the rim of a soft stroke may round to 0
    assert np.allclose(ndimage.center_of_mass(x), 14, atol=.51)

@pytest.fixture(scope='module')
def learn():
    learn = step3.learner(pretrained=True, data='digits')
    with learn.no_bar(): yield learn

def read(learn, *pictures):
    "What the net says to pictures, as text."
    dl = learn.dls.test_dl(map(mnist_form, pictures))
    digits = learn.get_preds(dl=dl)[0].argmax(1)
    return ''.join(map(str, digits.tolist()))

@pytest.mark.parametrize('how', [
    dict(bold=12),
    dict(size=(900, 300), at=(750, 160)),
    dict(size=(12, 12), at=(6, 6), height=10)])
def test_any_size_place_and_stroke(learn, how):
    image = printed(**how)
    check_form(mnist_form(image))
    assert read(learn, image) == '7'

def pictures():
    "One seven in many modes, in files, turned."
    grey = printed()
    ink = ImageOps.invert(grey)
    black = Image.new('L', grey.size)
    blue = ImageOps.colorize(grey, 'blue', 'white')
    for mode in ('RGB', 'CMYK', 'P', '1'): yield mode, blue.convert(mode)
    yield 'LA', Image.merge('LA', [black, ink])
    yield 'light', ink
    yield 'light, clear', Image.merge('LA', [ImageOps.invert(black), ink])
    levels = np.asarray(grey)*12. + 900  # 12 bits
    for kind in ('uint16', 'int32', 'float32'): yield kind, Image.fromarray(levels.astype(kind))
    yield 'jpeg', saved(grey, 'jpeg')
    turned = grey.rotate(90)
    turned.getexif()[274] = 6  # to be turned back
    yield 'turned', turned

@pytest.mark.parametrize('name, picture', list(pictures()))
def test_every_mode_file_and_orientation_gives_the_same(name, picture):
    limit = 6 if name in ('P', '1', 'jpeg') else 1  # not antialiased, or lossy
    assert apart(mnist_form(picture), mnist_form(printed())) < limit

def test_an_image_in_mnists_form_stays_as_it_is():
    x = mnist_form(printed())
    again = mnist_form(Image.fromarray(x.numpy()))
    assert (again.int() - x.int()).abs().max() <= 2

def test_what_is_no_ink_is_gone():
    "A frame, a table at the rim, a speck, shade."
    seven = printed(height=120)
    image = seven.copy()
    draw = ImageDraw.Draw(image)
    draw.rectangle((8, 8, 271, 271), outline=40, width=4)
    draw.rectangle((0, 0, 20, 279), 60)
    draw.rectangle((50, 200, 53, 203), 'black')
    x = mnist_form(photographed(image, shade=60))
    check_form(x)
    assert apart(x, mnist_form(seven)) < 8

def test_a_digit_in_a_corner_stays(learn):
    corner = printed(size=(600, 480), at=(24, 30), height=50)
    ImageDraw.Draw(corner).rectangle((300, 240, 303, 243), 'black')  # a speck in the middle
    assert read(learn, corner) == '7'

def test_a_digit_that_fills_its_picture_stays():
    tilted = ImageOps.invert(printed(turn=6))
    tight = tilted.crop(tilted.getbbox())
    blurred = tight.filter(ImageFilter.GaussianBlur(1))
    for image in (tight, ImageOps.invert(tight), blurred):
        assert apart(mnist_form(image), mnist_form(tilted)) < 4

def test_a_line_of_one_pixel(learn):
    "Diagonal neighbours are one line, too."
    image = blank(40, 40)
    corners = [(10, 8), (30, 8), (12, 26)]
    ImageDraw.Draw(image).line(corners, 'black')
    assert read(learn, image) == '7'

def test_squared_paper(learn):
    lines = np.arange(280) % 40 < 3
    paper = np.where(lines | lines[:,None], 160, 255)
    paper = Image.fromarray(np.uint8(paper))
    paper = paper.rotate(2, Image.BICUBIC, fillcolor='white')
    images = [ImageChops.multiply(paper, printed(digit)) for digit in range(10)]
    photos = [photographed(image, noise=5) for image in images]
    assert read(learn, *photos) == '0123456789'

def test_files_with_their_labels(learn, tmp_path):
    files = [tmp_path/f'{digit}.png' for digit in range(10)]
    for digit,file in enumerate(files):
        photo = photographed(printed(digit))
        photo.save(file)
    labelled = [(mnist_form(file), int(file.stem)) for file in files]
    labelled[9] = labelled[9][0],8  # a wrong label
    dl = learn.dls.test_dl(labelled, with_labels=True)
    assert learn.validate(dl=dl)[1] == pytest.approx(.9)
    for o in (str(files[2]), io.BytesIO(files[2].read_bytes()), PILImageBW.create(files[2])):
        x = mnist_form(o)
        assert learn.predict(x)[0] == '2'

def test_what_is_no_digit(tmp_path):
    for image in (blank(90, 60), photographed(blank(300, 200))):
        image.save(tmp_path/'blank.png')
        with pytest.raises(ValueError, match='blank.png: there is no ink'):
            mnist_form(tmp_path/'blank.png')
    with pytest.raises(FileNotFoundError, match='none.png'): mnist_form('none.png')

@pytest.mark.mnist
def test_pretrained_is_the_recorded_seed_0():
    "Also from pictures: test images as they are, and photographed."
    learn = step3.learner(pretrained=True, data='mnist')
    guess,y = learn.get_preds()
    guess = guess.argmax(1)
    wrong = (guess != y).nonzero().flatten().tolist()
    said = ' '.join(f'{i}:{guess[i]}' for i in wrong)
    assert said == evidence.tested.wrong['step3', 0]
    x = learn.dls.valid_ds.x[:300, 0].cpu()
    images = [Image.fromarray(o) for o in x.numpy()]
    forms = torch.stack([mnist_form(image) for image in images])
    assert (forms.int() - x).abs().max() <= 2
    large = [ImageOps.invert(image).resize((280, 280)) for image in images]
    photos = read(learn, *[photographed(image) for image in large])
    assert sum(int(said) == label for said,label in zip(photos, y)) >= 298
