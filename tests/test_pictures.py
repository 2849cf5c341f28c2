"Pictures: MNIST's form from any file or PIL image, through all of fastai, and one clear line for what is no picture of a digit."
import io, re
from pathlib import Path

import numpy as np
import pytest
import torch
from fastai.vision.all import PILImageBW, TensorImageBW, load_learner, plt
from PIL import Image, ImageDraw, ImageFilter, ImageOps
from scipy import ndimage

import evidence, step3
from conftest import project
from data import load_digits, mnist_form

readme = (project/'README.md').read_text(encoding='utf-8')

def drawn(size=(300, 240), at=(120, 60), height=120, width=14):
    "A seven, black on white: `height` pixels high, `width` pixels thick, its upper left corner at `at`."
    image = Image.new('L', (3*size[0], 3*size[1]), 255)
    corners = [(3*(at[0] + height*x), 3*(at[1] + height*y)) for x,y in [(0, 0), (.6, 0), (.2, 1)]]
    ImageDraw.Draw(image).line(corners, 0, 3*width, joint='curve')
    return image.resize(size, Image.BOX)

def enlarged(x, side=280):
    "A small image of light ink as a large picture of dark ink."
    return ImageOps.invert(Image.fromarray(np.asarray(x)).resize((side, side), Image.BICUBIC))

def pencilled(image, seed, paper=215, ink=30, shade=35, noise=10, quality=60):
    "A black-on-white image photographed: shaded paper, grey ink, noise, JPEG."
    rng = np.random.default_rng(seed)
    y,x = (o/n*2 - 1 for o,n in zip(np.mgrid[:image.height,:image.width], (image.height, image.width)))
    angle = rng.uniform(0, 2*np.pi)
    if seed % 2: light = (x*np.cos(angle) + y*np.sin(angle))/2**.5            # a lamp to one side
    else: light = 1 - ((x - rng.uniform(-.7, .7))**2 + (y - rng.uniform(-.7, .7))**2)/1.5  # a lamp above
    ground,white = paper + shade*light,np.asarray(image)/255
    photo = ground*white + (ink + (ground - paper)/2)*(1 - white) + rng.normal(0, noise, white.shape)
    file = io.BytesIO()
    Image.fromarray(photo.clip(0, 255).round().astype(np.uint8)).save(file, 'jpeg', quality=quality)
    return Image.open(file)

def apart(a, b): return (a.float() - b.float()).abs().mean()

def check_form(x):
    assert x.shape == (28, 28) and x.dtype == torch.uint8 and x.max() >= 254
    rows,cols = (np.flatnonzero(x.any(o)) for o in (1, 0))
    assert max(rows[-1] - rows[0], cols[-1] - cols[0]) + 1 in (19, 20)  # the rim of an antialiased stroke may round to 0
    assert np.allclose(ndimage.center_of_mass(x.numpy()), 14, atol=.51)

@pytest.mark.parametrize('how', [dict(), dict(width=2), dict(width=34), dict(size=(1000, 1000), at=(500, 80), height=700, width=4),
                                 dict(size=(900, 300), at=(700, 120), height=130), dict(size=(28, 28), at=(8, 5), height=16, width=2),
                                 dict(size=(12, 12), at=(3, 2), height=8, width=1), dict(size=(2000, 1500), at=(300, 900), height=300)],
                         ids=str)
def test_any_size_place_and_stroke_gives_mnists_form(how):
    image = drawn(**how)
    x = mnist_form(image)
    check_form(x)
    p = x.float() / 255
    assert 25 < p.sum() < 200 and (p*p).sum() > .75*p.sum()  # neither lost nor pale (MNIST's median: .85)
    assert apart(x, mnist_form(ImageOps.invert(image))) < 1

def pictures():
    "name → one seven in every mode."
    grey = drawn()
    ink = ImageOps.invert(grey)
    rgb = Image.merge('RGB', [grey.point(lambda v: 255 - (255-v)*(255-c)//255) for c in (30, 60, 160)])  # blue ink
    palette = Image.fromarray((np.asarray(grey) > 127).astype(np.uint8)).convert('P')  # 0: ink, 1: ground
    palette.putpalette([200, 30, 30, 255, 255, 240])
    clear = palette.copy()
    clear.putpalette([0, 0, 0, 0, 0, 0])  # all black: only the transparency shows the digit
    clear.info['transparency'] = 1
    transparent = Image.merge('RGBA', [Image.new('L', grey.size, v) for v in (0, 0, 90)] + [ink])
    sixteen = np.asarray(grey).astype(np.uint16)*12 + 900  # 12 bits in 16
    turned = drawn().transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[274] = 6  # to be turned back
    return dict(one=grey.convert('1', dither=Image.Dither.NONE), L=grey, light=ink, P=palette,
                LA=Image.merge('LA', [Image.new('L', grey.size), ink]), P_transparent=clear, RGB=rgb, RGBA=transparent,
                CMYK=rgb.convert('CMYK'), YCbCr=rgb.convert('YCbCr'), HSV=rgb.convert('HSV'), I16=Image.fromarray(sixteen),
                I=Image.fromarray(sixteen.astype(np.int32)), exif=turned, fastai=PILImageBW(grey),
                F=Image.fromarray((np.asarray(grey)/255).astype(np.float32)))

@pytest.mark.parametrize('name, image', pictures().items(), ids=list(pictures()))
def test_every_mode_gives_the_same(name, image):
    x,same = mnist_form(image),mnist_form(drawn())
    check_form(x)
    assert apart(x, same) < (6 if name in ('one', 'P', 'P_transparent') else 1), apart(x, same)  # without antialiasing some more
    assert image.size == pictures()[name].size and image.mode == pictures()[name].mode  # the picture itself stays as it was

@pytest.mark.parametrize('suffix', ['png', 'jpg', 'gif', 'tif', 'bmp', 'webp'])
def test_files(tmp_path, suffix):
    path = tmp_path/f'seven.{suffix}'
    drawn().save(path)
    assert apart(mnist_form(path), mnist_form(drawn())) < (4 if suffix in ('jpg', 'webp') else 1)
    assert torch.equal(mnist_form(path), mnist_form(str(path)))

def test_exif_orientation_of_a_file(tmp_path):
    turned = drawn().transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[274] = 6
    turned.save(tmp_path/'turned.jpg', exif=exif, quality=95)
    assert apart(mnist_form(tmp_path/'turned.jpg'), mnist_form(drawn())) < 8 < 25 < apart(mnist_form(turned), mnist_form(drawn()))

@pytest.mark.parametrize('width', [6, 14, 24])
def test_an_image_in_mnists_form_stays_as_it_is(width):
    x = mnist_form(drawn(width=width))
    assert 20 < ((x > 0) & (x < 128)).sum() and apart(mnist_form(Image.fromarray(x.numpy())), x) < 1  # its soft edges, too

def ruin(image, what):
    draw = ImageDraw.Draw(image)
    if what == 'frame': draw.rectangle((8, 8, 291, 231), outline=40, width=4)
    if what == 'specks': [draw.rectangle((x, y, x+3, y+3), fill=0) for x,y in [(20, 30), (40, 200), (260, 120), (110, 20), (230, 215)]]
    if what == 'table': draw.rectangle((0, 0, 40, 239), fill=60)
    if what == 'finger': draw.ellipse((220, 160, 380, 320), fill=110)
    if what == 'lines': [draw.line((0, y, 299, y), fill=190, width=2) for y in range(10, 240, 35)]
    return image

@pytest.mark.parametrize('what', ['frame', 'specks', 'table', 'finger', 'lines', 'shade'])
def test_what_is_no_ink_is_gone(what):
    image = pencilled(ruin(drawn(), what), 2, shade=90 if what == 'shade' else 20, paper=160 if what == 'shade' else 210, noise=5)
    assert apart(mnist_form(image), mnist_form(drawn())) < 12
    check_form(mnist_form(image))

@pytest.mark.parametrize('seed', [1, 2])
def test_noise_of_the_paper_adds_nothing_to_the_ink(seed):
    assert apart(mnist_form(pencilled(drawn(width=8), seed, noise=5)), mnist_form(drawn(width=8))) < 6

def test_a_digit_in_a_corner_stays():
    image = drawn(size=(600, 480), at=(8, 8), height=34, width=5)
    ImageDraw.Draw(image).rectangle((300, 240, 303, 243), fill=0)  # a speck in the middle
    assert apart(mnist_form(image), mnist_form(drawn(size=(120, 96), at=(30, 30), height=34, width=5))) < 12

def test_a_digit_that_fills_its_picture_stays():
    tilted = ImageOps.invert(drawn()).rotate(6, Image.BICUBIC)
    tight = tilted.crop(tilted.getbbox())
    for image in (tight, ImageOps.invert(tight), tight.filter(ImageFilter.GaussianBlur(1))):
        assert apart(mnist_form(image), mnist_form(tilted)) < 4

@pytest.fixture(scope='module')
def learn(): return step3.train(epochs=4, data='digits')

@pytest.fixture
def files(tmp_path):
    (_,_),(x,y) = load_digits()
    paths = [tmp_path/f'{i}.png' for i in range(40)]
    for i,path in enumerate(paths): pencilled(enlarged(x[i,0]), i).save(path)
    return paths,y[:40]

def test_fastai_reads_pictures(learn, files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths,y = files
    preds,truth = learn.get_preds(dl=learn.dls.test_dl(paths))
    assert preds.shape == (40, 10) and truth is None and (preds.argmax(1) == y).float().mean() >= .9
    for o in (paths[0], str(paths[0]), paths[0].name, Image.open(paths[0]), PILImageBW.create(paths[0])):
        label,index,probabilities = learn.predict(o)
        assert label == str(int(preds[0].argmax())) and torch.allclose(probabilities, preds[0], atol=1e-5)
    seen,*_ = learn.predict(paths[0], with_input=True)
    assert apart((seen[0]*255).round(), mnist_form(paths[0])) < .01
    mixed = [paths[0], str(paths[1]), Image.open(paths[2]), mnist_form(paths[3]), mnist_form(paths[4]).numpy()]
    mixed = learn.dls.test_dl(mixed, bs=2, num_workers=2)
    assert torch.allclose(learn.get_preds(dl=mixed)[0], preds[:5], atol=1e-5)
    assert len(learn.dls.test_dl(paths[0])) == len(learn.dls.test_dl(str(paths[0]))) == 1  # one picture without a list
    assert torch.allclose(learn.get_preds(dl=learn.dls.test_dl(paths, with_labels=True, rm_type_tfms=1))[0], preds, atol=1e-5)
    batch = torch.stack([mnist_form(o) for o in paths])
    for o in (batch, batch[:,None], batch.numpy(), (p for p in paths)):
        assert torch.allclose(learn.get_preds(dl=learn.dls.test_dl(o))[0], preds, atol=1e-5)
    learn.dls.test_dl(paths).show_batch(max_n=4)
    assert len(plt.gcf().axes) == 4
    plt.close('all')
    learn.export('net.pkl')
    with pytest.warns(UserWarning, match='insecure pickle'): again = load_learner(learn.path/'net.pkl')
    assert again.predict(paths[0])[0] == learn.predict(paths[0])[0]

def test_arrays_are_taken_as_they_are(learn):
    x = load_digits()[1][0][0]
    expected = learn.get_preds()[0][0]
    for o in (x, x[0], x[0].numpy(), x[0].int(), x[0].numpy().astype(np.uint16), x[0].tolist(), x.numpy().transpose(1, 2, 0)):
        assert torch.allclose(learn.predict(o)[2], expected, atol=1e-5)

good = load_digits()[1][0][0, 0]
@pytest.mark.parametrize('array, what', [
    (good > 127, 'bool .28, 28. from 0 to 1'), (good.float(), 'float32'), (good/255., 'float32 .28, 28. from 0 to 1'),
    (TensorImageBW(good[None]/255.), 'float32'), (good.int() - 1, 'from -1 to'), (good.int()*2, 'from 0 to 5'),
    (torch.zeros(28, 28) > 0, 'bool .28, 28. from 0 to 0'), ((good > 127).byte(), 'uint8 .28, 28. from 0 to 1'), (good*0, 'from 0 to 0'),
    (255 - good, 'light ink'), (good*0 + 200, 'light ink'), (good[4:24, 4:24], '.20, 20.'), (good.expand(3, 28, 28), '.3, 28, 28.'),
    (good.flatten(), '.784,.'), (np.zeros((0, 28)), '.0, 28.'),
    (None, 'object'), ({'a': 1}, 'object'), (b'bytes', 'S5'), (7, 'int64 ..'), ([['a']], 'U1')], ids=lambda o: str(o)[:20])
def test_other_arrays_get_one_line(learn, array, what):
    for f in (learn.predict, lambda o: learn.dls.test_dl([o])):
        with pytest.raises(ValueError, match=f'28×28 whole numbers from 0 to 255.*{what}') as e: f(array)
        assert len(str(e.value).splitlines()) == 1

def noise(sigma): return Image.fromarray((200 + np.random.default_rng(0).normal(0, sigma, (200, 200))).clip(0, 255).astype(np.uint8))

@pytest.mark.parametrize('image', [Image.new('L', (50, 50), 255), Image.new('L', (28, 28)), Image.new('RGBA', (90, 60)),
    Image.new('1', (1, 1)), Image.new('I;16', (30, 30), 4000), Image.new('F', (30, 30)), Image.new('L', (300, 1), 9), noise(2), noise(8),
    noise(25), pencilled(Image.new('L', (300, 200), 255), 1, noise=5)])
def test_no_ink_gets_one_line(learn, image, tmp_path):
    with pytest.raises(ValueError, match='there is no ink') as e: learn.predict(image)
    assert len(str(e.value).splitlines()) == 1
    if image.mode != 'F':
        image.save(tmp_path/'empty.png')
        with pytest.raises(ValueError, match='empty.png: there is no ink'): learn.predict(tmp_path/'empty.png')

def test_files_that_are_no_pictures_get_one_line(learn, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 150_000)  # an error from twice as many on
    Image.new('1', (600, 600)).save(tmp_path/'huge.png')
    (tmp_path/'text.png').write_text('no image')
    drawn().save(tmp_path/'whole.png')
    drawn().save(tmp_path/'whole.jpg')
    for o in ('png', 'jpg'): (tmp_path/f'cut.{o}').write_bytes((tmp_path/f'whole.{o}').read_bytes()[:900])
    whys = {'text.png': 'cannot identify', 'cut.png': 'image', 'cut.jpg': 'image', 'none.png': 'No such file', '.': 'director|denied',
            'huge.png': 'exceeds limit'}
    for name,why in whys.items():
        for f in (learn.predict, lambda o: learn.dls.test_dl([tmp_path/'whole.png', o])):
            with pytest.raises(ValueError, match=why) as e: f(tmp_path/name)
            assert len(str(e.value).splitlines()) == 1 and str(tmp_path/name) in str(e.value)
    for empty in ([], (), torch.zeros(0, 28, 28)):
        with pytest.raises(ValueError, match='list is empty'): learn.dls.test_dl(empty)

@pytest.fixture(scope='module')
def trained(): return step3.learner(pretrained=True, data='digits')

def test_pretrained_reads_the_small_digits_as_pictures(trained, tmp_path):
    x,y = load_digits()[1]
    pictures = [enlarged(o) for o in x[:, 0]]
    assert (trained.get_preds(dl=trained.dls.test_dl(pictures))[0].argmax(1) == y).float().mean() > .85
    drawn().save(tmp_path/'seven.jpg')
    assert trained.predict(tmp_path/'seven.jpg')[0] == '7'

def test_readme_lines_for_a_picture_offline(run, tmp_path):
    lines = re.findall(r'^>>> (.*)$', re.search(r'handwriting\n\n```python\n(.*?)```', readme, re.S)[1], re.M)
    drawn().save(tmp_path/'seven.jpg')
    done = run('-c', f"{lines[0]}\nprint({lines[1]}[0])")
    assert done.returncode == 0 and done.stdout.split()[-1] == '7' and 'Traceback' not in done.stderr, done.stderr

def test_readme_lines_for_onnx(trained, tmp_path, monkeypatch):
    code = next(o for o in re.findall(r'```python\n(.*?)```', readme, re.S) if 'onnx' in o)
    monkeypatch.chdir(tmp_path)
    images,expected = trained.dls.valid_ds.x.cpu().numpy(),trained.get_preds()[0]
    for n in (1, 7, 360):
        found = dict(torch=torch, learn=trained, images=images[:n])
        exec(code if n == 1 else code[code.index('import numpy'):], found)
        assert torch.allclose(torch.tensor(found['logits']).softmax(1), expected[:n], atol=1e-4)

@pytest.mark.mnist
def test_pretrained_is_the_recorded_seed_0(tmp_path):
    "Also from pictures: the test images as they are, and 1,000 of them on shaded paper, with noise, as JPEG."
    learn = step3.learner(pretrained=True, data='mnist')
    x,y = learn.dls.valid_ds.x[:, 0].cpu().numpy(),learn.dls.valid_ds.y.cpu()
    def read(pictures): return learn.get_preds(dl=learn.dls.test_dl(pictures))[0].argmax(1)
    guess = learn.get_preds()[0].argmax(1)
    assert {int(i): int(guess[i]) for i in (guess != y).nonzero()} == evidence.wrong('step3')[0]
    assert abs((read([Image.fromarray(o) for o in x]) == y).float().mean() - (guess == y).float().mean()) <= .001
    for i in range(1000): pencilled(enlarged(x[10*i]), i).save(tmp_path/f'{i}.png')  # the JPEG is read already: PNG keeps it
    assert (read([tmp_path/f'{i}.png' for i in range(1000)]) == y[::10]).float().mean() >= .994

def test_paper_on_a_dark_table_is_not_taken_for_the_ink():
    "Though most of the picture's rim is table."
    paper = Image.new('L', (360, 300), 200)
    ImageDraw.Draw(paper).line([(140, 80), (220, 80), (165, 220)], 45, 9)
    table = paper.copy()
    for x in (0, 315): table.paste(50, (x, 0, x+45, 300))
    assert apart(mnist_form(table), mnist_form(paper)) < 2
