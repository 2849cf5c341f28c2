"Pictures: MNIST's form from any file or PIL image, through all of fastai, and one clear line for what is no digit."
import io

import numpy as np
import pytest
import torch
from fastai.vision.all import PILImageBW, TensorImageBW, plt
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont, ImageOps
from scipy import ndimage
from torchvision.datasets import ImageFolder

import evidence, step3
from data import load_digits
from handwriting import mnist_form

def blank(*size): return Image.new('L', size, 'white')

def drawn(size=(300, 240), at=(120, 60), height=120, width=14):
    "A seven, black on white: `height` pixels high, `width` pixels thick, its upper left corner at `at`."
    corners = np.array([(0, 0), (.6, 0), (.2, 1)])*height + at
    corners = (3*corners).ravel().tolist()
    large = blank(3*size[0], 3*size[1])
    draw = ImageDraw.Draw(large)
    draw.line(corners, 'black', 3*width, joint='curve')
    return large.resize(size, Image.BOX)

def printed(digit, turn):
    image = blank(280, 280)
    text = '0I23456789'[digit]  # a bare stroke: the font's 1 has a flag that MNIST's lack
    font = ImageFont.load_default(220)
    ImageDraw.Draw(image).text((140, 140), text, 'black', font, anchor='mm')
    return image.rotate(turn, Image.BICUBIC, fillcolor='white')

def enlarged(x):
    "A small image of light ink as a large picture of dark ink."
    image = Image.fromarray(np.asarray(x))
    return ImageOps.invert(image.resize((280, 280), Image.BICUBIC))

def saved(image, suffix, **options):
    "An open file that holds the image."
    file = io.BytesIO()
    image.save(file, suffix, **options)
    return file

def pencilled(image, seed, paper=215, shade=35, noise=10):
    "A black-on-white image photographed: shaded paper, grey ink, noise, JPEG."
    rng = np.random.default_rng(seed)
    across,down = rng.uniform(-.7, .7, 2)
    y,x = np.mgrid[-1:1:image.height*1j, -1:1:image.width*1j]
    light = shade*(across*x + down*y)
    white = np.asarray(image)/255
    ink = 30 + light/2
    photo = ink + white*(paper + light - ink)
    photo += rng.normal(0, noise, photo.shape)
    photo = np.uint8(photo.clip(0, 255))
    file = saved(Image.fromarray(photo), 'jpeg', quality=60)
    return Image.open(file)

def squared(image, seed):
    "A black-on-white image on squared paper, photographed at an angle of 2°."
    rng = np.random.default_rng(seed)
    gap = rng.integers(20, 40)
    paper = blank(*image.size)
    draw = ImageDraw.Draw(paper)
    for k in range(rng.integers(gap), 280, gap):
        draw.line((k, 0, k, 280), 160, 3)
        draw.line((0, k, 280, k), 160, 3)
    paper = paper.rotate(2, Image.BICUBIC, fillcolor='white')
    return pencilled(ImageChops.multiply(paper, image), seed, noise=5)

def apart(a, b): return (a.float() - b.float()).abs().mean()

def check_form(x):
    assert x.shape == (28, 28)
    assert x.dtype == torch.uint8
    assert x.max() == 255
    rows,columns = np.nonzero(x.numpy())
    size = max(np.ptp(rows), np.ptp(columns)) + 1
    assert size in (19, 20)  # the rim of a soft stroke may round to 0
    centre = ndimage.center_of_mass(x.numpy())
    assert np.allclose(centre, 14, atol=.51)

@pytest.fixture(scope='module')
def learn():
    learn = step3.learner(pretrained=True, data='digits')
    with learn.no_bar(): yield learn

def right(learn, pictures, labels):
    "How many are read as they should be."
    dl = learn.dls.test_dl(pictures)
    guess = learn.get_preds(dl=dl)[0].argmax(1)
    return int((guess == torch.as_tensor(labels)).sum())

@pytest.mark.parametrize('how', [
    dict(width=2),
    dict(width=34),
    dict(size=(900, 300), at=(700, 120), height=130),
    dict(size=(1000, 1000), at=(500, 80), height=700, width=4),
    dict(size=(12, 12), at=(3, 2), height=8, width=1)], ids=str)
def test_any_size_place_and_stroke(learn, how):
    image = drawn(**how)
    x = mnist_form(image)
    check_form(x)
    assert learn.predict(x)[0] == '7'
    assert apart(x, mnist_form(ImageOps.invert(image))) < 1

def pictures():
    "One seven in every mode, in files, turned."
    grey = drawn()
    ink = ImageOps.invert(grey)
    black,white = Image.new('L', grey.size, 'black'),Image.new('L', grey.size, 'white')
    blue = ImageOps.colorize(grey, 'blue', 'white')
    for mode in ('L', 'RGB', 'CMYK', 'YCbCr', 'HSV'): yield mode, blue.convert(mode)
    one = grey.convert('1', dither=Image.Dither.NONE)
    yield '1', one
    P = Image.fromarray(np.uint8(one)).convert('P')  # 0: ink, 1: ground
    P.putpalette([0]*6)  # all black: only the transparency shows the digit
    P.info['transparency'] = 1
    yield 'P, clear', P
    P = P.copy()
    del P.info['transparency']
    P.putpalette([200, 30, 30, 255, 255, 240])
    yield 'P', P
    yield 'LA', Image.merge('LA', [black, ink])
    yield 'RGBA', Image.merge('RGBA', [black, black, black, ink])
    yield 'light', ink
    yield 'light, clear', Image.merge('LA', [white, ink])
    levels = np.asarray(grey)*12. + 900  # 12 bits
    for kind in ('uint16', 'int32', 'float32'):
        yield kind, Image.fromarray(levels.astype(kind))
    for suffix in ('png', 'gif', 'tiff', 'bmp', 'jpeg', 'webp'):
        yield suffix, saved(grey, suffix)
    turned = grey.transpose(Image.Transpose.ROTATE_90)
    exif = turned.getexif()
    exif[274] = 6  # to be turned back
    yield 'turned', turned
    yield 'turned.png', saved(turned, 'png', exif=exif)

@pytest.mark.parametrize('name, picture', list(pictures()))
def test_every_mode_file_and_orientation_gives_the_same(name, picture):
    x = mnist_form(picture)
    check_form(x)
    coarse = name in ('1', 'P', 'P, clear', 'jpeg', 'webp')  # not antialiased, or lossy
    limit = 6 if coarse else 1
    assert apart(x, mnist_form(drawn())) < limit

@pytest.mark.parametrize('width', [6, 24])
def test_an_image_in_mnists_form_stays_as_it_is(width):
    x = mnist_form(drawn(width=width))
    again = mnist_form(Image.fromarray(x.numpy()))
    assert (again.int() - x.int()).abs().max() <= 2

def ruined(what):
    image = drawn()
    draw = ImageDraw.Draw(image)
    if what == 'frame': draw.rectangle((8, 8, 291, 231), outline=40, width=4)
    if what == 'tables':
        draw.rectangle((0, 0, 40, 239), 60)
        draw.rectangle((260, 0, 299, 239), 60)
    if what == 'specks':
        for x in (20, 60, 230, 260): draw.rectangle((x, 200, x+3, 203), 'black')
    return image

@pytest.mark.parametrize('what', ['frame', 'specks', 'tables', 'shade'])
def test_what_is_no_ink_is_gone(what):
    shade = 90 if what == 'shade' else 20
    x = mnist_form(pencilled(ruined(what), 2, paper=170, shade=shade, noise=5))
    check_form(x)
    assert apart(x, mnist_form(drawn())) < 8

def test_a_digit_in_a_corner_stays(learn):
    corner = drawn(size=(600, 480), at=(8, 8), height=34, width=5)
    ImageDraw.Draw(corner).rectangle((300, 240, 303, 243), 'black')  # a speck in the middle
    assert learn.predict(corner)[0] == '7'

def test_a_digit_that_fills_its_picture_stays():
    tilted = ImageOps.invert(drawn()).rotate(6, Image.BICUBIC)
    tight = tilted.crop(tilted.getbbox())
    blurred = tight.filter(ImageFilter.GaussianBlur(1))
    for image in (tight, ImageOps.invert(tight), blurred):
        assert apart(mnist_form(image), mnist_form(tilted)) < 4

@pytest.mark.parametrize('digit, points', [('1', [(20, 4), (20, 36)]), ('7', [(10, 8), (30, 8), (12, 26)])])
def test_lines_of_one_pixel(learn, digit, points):
    "Diagonal neighbours are one line, too."
    image = blank(40, 40)
    ImageDraw.Draw(image).line(points, 'black')
    assert learn.predict(image)[0] == digit

def test_squared_paper(learn):
    labels = [i % 10 for i in range(100)]
    images = [printed(digit, turn=i % 17 - 8) for i,digit in enumerate(labels)]
    images = [squared(image, i) for i,image in enumerate(images)]
    assert right(learn, images, labels) >= 97

@pytest.fixture(scope='module')
def files(tmp_path_factory):
    "Ten digits photographed: LABEL/digit.png. The last one has a wrong label."
    folder = tmp_path_factory.mktemp('digits')
    for label in range(10): (folder/str(label)).mkdir()
    for digit in range(10):
        label = min(digit, 8)
        path = folder/str(label)/f'{digit}.png'
        pencilled(printed(digit, 5), digit).save(path)
    return sorted(folder.glob('*/*'))

def test_fastai_reads_pictures(learn, files, monkeypatch):
    assert right(learn, files, range(10)) == 10
    forms = torch.stack([mnist_form(o) for o in files])
    expected = learn.get_preds(dl=learn.dls.test_dl(forms))[0]
    two = files[2]
    monkeypatch.chdir(two.parent)
    image = Image.open(two)
    file = io.BytesIO(two.read_bytes())
    for o in (two, str(two), two.name, image, file, PILImageBW.create(two)):
        label,_,probabilities = learn.predict(o)
        assert label == '2'
        assert torch.allclose(probabilities, expected[2], atol=1e-5)
    for o in (two, str(two), image): assert len(learn.dls.test_dl(o)) == 1  # without a list
    every = (o for o in files)
    mixed = [*files[:2], image, *forms[3:]]
    for o in (files, every, mixed, forms[:, None], forms.numpy()):
        dl = learn.dls.test_dl(o, bs=3, num_workers=2)
        assert torch.allclose(learn.get_preds(dl=dl)[0], expected, atol=1e-5)
    learn.dls.test_dl(files).show_batch(max_n=4)
    assert len(plt.gcf().axes) == 4
    plt.close('all')

def test_labels_of_pictures_give_the_accuracy(learn, files):
    texts = [o.parent.name for o in files]
    labels = [int(o) for o in texts]
    folder = files[0].parent.parent
    dataset = ImageFolder(folder, allow_empty=True)
    numbers = torch.tensor(labels)
    for items in (zip(files, labels), zip(files, texts), zip(files, numbers), dataset):
        dl = learn.dls.test_dl(items, with_labels=True)
        assert dl.dataset.y.tolist() == labels
        assert learn.validate(dl=dl)[1] == pytest.approx(.9)
    forms = [mnist_form(o) for o in files[:2]]
    for items in (forms, tuple(forms)):  # two pictures, no pair
        assert learn.dls.test_dl(items).dataset.y is None

def refused(folder):
    "(part of a message, what has it)"
    for mode in ('L', 'RGBA', 'F', 'I;16', '1'): yield 'there is no ink', Image.new(mode, (90, 60))
    for size in ((1, 1), (300, 1)): yield 'there is no ink', blank(*size)
    for sigma in (2, 5, 25): yield 'there is no ink', pencilled(blank(300, 200), 1, noise=sigma)
    whole = saved(drawn(), 'png').getvalue()
    files = dict(text=b'no image', cut=whole[:900])
    for name,content in files.items(): (folder/name).write_bytes(content)
    Image.new('1', (600, 600)).save(folder/'huge.png')
    yield 'text: cannot identify', folder/'text'
    yield 'cut: .*image', folder/'cut'
    yield 'huge.png: .*exceeds limit', folder/'huge.png'
    yield 'none.png: No such file', str(folder/'none.png')
    yield 'director|denied', folder
    yield '^data:.*…: File name too long', 'data:image/png;base64,' + 'iVBORw0KGgo\n'*3000
    yield 'There is no picture, only None', None
    good = load_digits()[1][0][0, 0].int()
    for array in (good/255, TensorImageBW(good[None]/255)):
        yield 'not float.* from 0 to 1.*learn.dls.valid_ds.x.0.', array
    for array in (good.clip(max=1), good*0, good*2, good - 1, 255 - good, good*0 + 200):
        yield 'not int.* .28, 28. from ', array
    for array in (good[4:24], good.expand(3, 28, 28), np.zeros((0, 28)), good > 127, b'bytes', 7):
        yield 'from 0 to 255, light ink on 0, not', array
    yield "invalid literal for int.. with base 10: 'seven'", (good, 'seven')

def test_what_is_no_digit_gets_one_line(learn, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 150_000)  # an error from twice as many on
    for why,item in refused(tmp_path):
        for read in (learn.predict, lambda o: learn.dls.test_dl([o])):
            with pytest.raises(ValueError, match=why) as e: read(item)
            message = str(e.value)
            assert '\n' not in message and len(message) < 350
    for empty in ([], torch.zeros(0, 28, 28)):
        with pytest.raises(ValueError, match='list is empty'): learn.dls.test_dl(empty)

@pytest.mark.mnist
def test_pretrained_is_the_recorded_seed_0():
    "Also from pictures: the test images as they are, and 1,000 of them photographed."
    learn = step3.learner(pretrained=True, data='mnist')
    dataset = learn.dls.valid_ds
    x,y = dataset.x[:, 0].cpu(),dataset.y.cpu()
    guess = learn.get_preds()[0].argmax(1)
    wrong = (guess != y).nonzero().flatten().tolist()
    assert ' '.join(f'{i}:{guess[i]}' for i in wrong) == evidence.tested.wrong['step3', 0]
    forms = [mnist_form(Image.fromarray(o.numpy())) for o in x[:300]]
    forms = torch.stack(forms).int()
    assert (forms - x[:300]).abs().max() <= 2
    photos = [pencilled(enlarged(image), i) for i,image in enumerate(x[::10])]
    assert right(learn, photos, y[::10]) >= 994
