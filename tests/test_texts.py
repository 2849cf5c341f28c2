"The texts and tables give the numbers of the recorded runs, each at its place; the code is what was recorded."
import json, re

import fastai, numpy as np, pandas as pd, pytest, torch, torchvision
from fastai.vision.all import Callback, CancelFitException

import data, evidence, experiments, models, record, report, step1, step2, step3
from conftest import project
from evidence import by_images, clear, difference, epochs, in_words, level, measured, met, pairs, runs, since, tested
from experiments import key, recipe

steps = dict(step1=step1, step2=step2, step3=step3)
pages = {name: (project/name).read_text(encoding='utf-8') for name in ('README.md', 'USING.md', 'results/README.md')}
rates = pd.read_csv(evidence.here/'lr_find.csv').groupby('step').median(numeric_only=True)
times = pd.read_csv(evidence.here/'speed.csv')

# ---- The figures of a text, in their order ---------------------------------------------------------------------------

def numbers(text): return re.findall(r'\d+(?:[.,]\d+)*', text)

def figures(text):
    "Numbers with a point or a comma, two and more in a row, 3 of 5, 2 to 5, epochs; others may be the step or a size."
    return re.findall(r'\d+(?:[.,]\d+)+|\d+(?:(?: | of | to )\d+)+|(?<=epoch )\d+|\d+(?= epochs)', text)

def check(text, expected):
    "`_` in `expected`: a figure that was not measured here."
    found,expected = numbers(' '.join(figures(text))),expected.split()
    assert [said if fits == '_' else fits for said,fits in zip(found, expected)] == found
    assert len(found) == len(expected)

def size(what): return numbers(in_words(difference(what)))[0]
def both(text): return ' '.join(numbers(text))
def suggestion(step, name): return f'{rates.loc[step, name]:.4f}'
def ratio(way, base='step2.py'): return f'{(times[way]/times[base]).median():.2f}'
def target(step): return f'{100*step.target:.2f}'
def errors(step): return f'{100*(1 - step.target):.2f}'
def parameters(name): return f'{tested.loc[name].parameters[0]:,}'
def channels(net):
    found = [layer.out_channels for layer in net.modules() if isinstance(layer, torch.nn.Conv2d)]
    return ' '.join(map(str, found[:6]))

def last(name): return f"{level(name, 'train')} {level(name, 'final')}"
def goal(name): return f"{level(name, 'accuracy')} {both(met(name, step3.target))}"
def gap(name): return level(name, 'gap')
def fluctuation(name): return level(name, 'fluctuation')
def mean(name):
    found = tested.loc[name]
    return f"{level(name, 'accuracy')} {evidence.margin(found.accuracy):.2f} {found.lowest.min():.2f}"
def result(name):
    return f"""{parameters(name)} {last(name)} {steps[name].epochs} {mean(name)} {gap(name)} {fluctuation(name)}
        {both(met(name))} 0 {len(tested.loc[name]) - 1}"""

large_kernel = models.layers(models.Model_1())[-2][2]
neither = 'constant-0.006-without-average'
slow = 'constant-0.003-without-average'
budget = f'{models.budget:,}'
all_targets = f'{target(step3)} {errors(step3)} {errors(step3)} {errors(step2)} {errors(step1)}'
last_epoch = difference('without the average of the weights', 'final')

expected = dict(
    step1=f"""{budget} {target(step1)} {all_targets} {result('step1')}
        {gap('step1')} {fluctuation('step1')}
        {size('without batch norm')} {gap('step1-without-batch-norm')}
        {parameters('step1-twice-channels')} {large_kernel:,} {parameters('step1')}
        {gap('step1-twice-channels')}
        {step1.lr} {suggestion('step1', 'valley')} {suggestion('step1', 'slide')} _""",
    step2=f"""{gap('step1')} {fluctuation('step1')}
        {channels(models.Model_2())} {channels(experiments.plain_filters())} 0.05
        {target(step2)} {errors(step2)} {errors(step1)} {level('step1', 'accuracy')} {target(step2)}
        {both(met('step1', step2.target))} {result('step2')}
        {size('all of step 2, against step 1')} {gap('step1')} {gap('step2')}
        {gap('step2-without-dropout')} {size('without dropout')} {size('the net without dropout, against step 1')}
        {parameters('step2-plain-filters')} {size('ordinary convolutions, fewer channels')}
        {parameters('step2-large-kernel')} {gap('step2-large-kernel')}
        {size('plain global average pooling')} {level('step2-average-pooling', 'train')}
        {size('pooling one layer earlier')}
        {ratio('step2.py on all 28×28 pixels')} {ratio('step2.py with pooling after batch norm and SiLU')}
        {step2.lr} {suggestion('step2', 'valley')} {suggestion('step2', 'slide')}
        {gap('step2')} {fluctuation('step2')}""",
    step3=f"""{both(met('step2', step3.target))} {gap('step2')} {fluctuation('step2')} {step3.wd} _
        {target(step3)} {result('step3')}
        {gap('step2')} {gap('step3')} {fluctuation('step2')} {fluctuation('step3')}
        {gap('without-augmentation')} {size('without augmentation')} {gap('without-elastic')}
        {ratio('with the dropout of step 2', 'step3.py')}
        {fluctuation(neither)} {fluctuation('constant-0.006')} 0.006 {fluctuation('without-average')}
        0.006 {both(met(slow))} {step2.lr} {gap(neither)} {gap(slow)} {step2.lr}
        {goal('step2-without-dropout')} _ {goal('without-augmentation')} {goal(slow)} {goal('step3')}
        {target(step3)} {both(since('step3'))} {both(since('without-average'))} {both(in_words(last_epoch))}
        0.006 {gap('constant-0.006')} {numbers(since('constant-0.006'))[1]}
        {step3.lr} {suggestion('step3', 'minimum')} {suggestion('step3', 'valley')}""")

@pytest.mark.parametrize('step', steps)
def test_every_number_of_a_step_is_the_recorded_one(step):
    text = steps[step].__doc__
    table = re.search(r'target met\n((?: {8}.*\n)+)', text)
    rows = table[1].splitlines()
    shown = [re.split('  +', row)[-1] for row in rows]
    assert rows == [' '*8 + evidence.row(what) for what in shown]
    assert shown[0] == f'step {step[-1]} itself'
    assert {pairs[what][0] for what in shown[1:]} == {step}
    check(text.replace(table[0], ''), expected[step])

held = numbers(*evidence.seeds_on_folds())
all_in_all = np.hypot(evidence.margin(tested.loc['step3'].accuracy), by_images('step3'))
gpu = tested.loc['step3-GPU']
by_epoch = epochs.query('fold == 0').groupby(['experiment', 'epoch']).mean(numeric_only=True)
def overfits_from(step):
    "The first epoch from which on train accuracy, as it trains, is above test accuracy."
    below = by_epoch.train_accuracy[step] <= by_epoch.valid_accuracy[step]
    return max(below.index[below]) + 1

expected_of_pages = {
    'README.md': f"""99.4 {budget} 99.4 {report.max_epochs} {budget}
        {target(step3)} {both(since('step3'))} {target(step3)} {target(step3)}
        {by_images('step3'):.2f} {all_in_all:.2f} {level('step3', 'accuracy')} {held[5]} {level('step3', 'accuracy')}
        _ _ {step3.epochs}
        {target(step1)} {errors(step3)} {errors(step2)} {errors(step1)}
        {last('step1')} {parameters('step1')} {gap('step1')} {fluctuation('step1')} {size('without batch norm')}
        {size('twice the channels')} {parameters('step1-twice-channels')}
        {target(step2)} {both(met('step1', step2.target))} {last('step2')} {parameters('step2')}
        {gap('step2')} {gap('step2-without-dropout')} {size('ordinary convolutions, fewer channels')}
        {size('plain global average pooling')} {fluctuation('step2')}
        {target(step3)} {step3.wd} _ {last('step3')} {parameters('step3')} {gap('step3')} {gap('without-augmentation')}
        {size('without augmentation')} {fluctuation('step3')} {fluctuation('without-average')} {fluctuation(slow)}
        {both(met(slow))} {both(met('without-augmentation'))}
        {overfits_from('step1')} {overfits_from('step2')}
        _ _ {parameters('step1')} {level('step1', 'final')} _ _ {parameters('step2')} {level('step2', 'final')}
        _ _ {parameters('step3')} {level('step3', 'final')}
        _ _ {data.mean} {data.std}""",
    'USING.md': f"""_ {mean('step3-GPU')} {both(met('step3-GPU'))} {gpu.seconds.min()} {gpu.seconds.max()}""",
    'results/README.md': f"""_ 1 6 {step3.epochs} _ _ _ _ _ _ _ {target(step3)} {target(step3)} _ _ _ _ 0.006 0.03
        _ _ {step2.lr} {'_ '*29} {step1.lr} {step3.lr}
        {suggestion('step3', 'minimum')} {suggestion('step3', 'valley')} {suggestion('step3', 'steep')}"""}

@pytest.mark.parametrize('page', pages)
def test_the_tables_and_the_numbers_of_a_page_are_as_recorded(page):
    text = pages[page]
    assert evidence.fill(text) == text
    check(re.sub(r'(?s)<!-- table.*?<!-- end -->|```.*?```|\]\([^)]*\)', '', text), expected_of_pages[page])

def test_the_run_that_the_readme_shows():
    block, = re.findall(r'(?s)This run.*?(?=```)', pages['README.md'])
    run = tested.loc['step3', 0]
    late = [f'{100*accuracy:.2f}' for accuracy in epochs.set_index(key).valid_accuracy['step3', 0, 0].tail(5)]
    check(block, f"""{parameters('step3')} {step3.epochs} {step3.lr} {run.train:.2f} {run.final:.2f}
        5 {step3.epochs} {run.accuracy:.2f} {run.lowest:.2f} {' '.join(late)}
        {target(step3)} {target(step3)} {report.n_late}""")

@pytest.mark.mnist
def test_the_digits_that_step_3_confuses():
    found = evidence.mistakes('step3')
    labels = data.mnist_dls('mnist', device='cpu').valid_ds.y.numpy()
    found['digit'] = labels[found.image]
    often = found.value_counts(['digit', 'taken_for'])[:3]
    said = [f'{digit} as {taken_for} in {n}' for (digit,taken_for),n in often.items()]
    assert f'of the {len(found)} errors of all seeds {", ".join(said)}.' in step3.__doc__.replace(' is read', '')

def test_clear_rows_stand_on_other_images_too():
    "The closest one is named in results/README.md."
    rows = [what for what in evidence.changes if clear[what] == 'yes']
    sizes = pd.Series({what: abs(difference(what).mean()) for what in rows})
    seeds = pd.Series({what: evidence.margin(difference(what)) for what in rows})
    images = pd.Series({what: by_images(*pairs[what][1:]) for what in rows})
    margins = np.hypot(seeds, images)
    (closest,least),(_,second) = (sizes/margins).nsmallest(2).items()
    assert 1 < least < 1.01 < second
    said = f'All clear rows are larger, {closest} only just ({sizes[closest]:.4f} to {margins[closest]:.4f})'
    assert said in ' '.join(pages['results/README.md'].split())

def test_intervals_and_signs():
    assert in_words(pd.Series([-.1, -.2, -.3])) == '-0.20 ± 0.25'  # Student's t, two degrees of freedom
    assert in_words(pd.Series([-.001, -.002, -.003])) == '+0.00 ± 0.00'

def test_learning_rates_are_read_off_lr_find():
    for step in ('step1', 'step2'): assert rates.valley[step] < steps[step].lr < rates.slide[step]
    assert rates.valley.step3 < rates.minimum.step3 < step3.lr < rates.steep.step3

# ---- What was recorded -----------------------------------------------------------------------------------------------

def test_recorded_runs_are_whole():
    assert not runs.commit.str.contains('dirty|unknown').any()
    rows = epochs.groupby(key).epoch.agg(list)
    assert len(rows) == len(runs)
    for run in runs.set_index(key).itertuples():
        assert rows[run.Index] == [*range(1, 1 + json.loads(run.recipe)['epochs'])]
    assert {*runs.experiment[runs.device != 'cpu']} == {'step3-GPU'}
    for run in tested.itertuples(): assert len(run.wrong.split()) == round(10_000 - 100*run.final)
    for name in runs.experiment[runs.fold == 0]:
        seeds = tested.loc[name].index
        assert [*seeds] == [*range(len(seeds))]  # none is left out

@pytest.mark.parametrize('name', experiments.experiments)
def test_the_code_is_the_recipe_that_was_recorded(name):
    assert {*runs.recipe[runs.experiment == name]} <= {recipe(name)}

def test_an_experiment_changes_exactly_one_thing():
    more = {'without-augmentation': 5, 'elastic-only': 4, 'constant-0.003': 2, 'constant-0.006': 2,
            'constant-0.003-without-average': 3, 'constant-0.006-without-average': 3}
    def settings(name):
        found = json.loads(recipe(name))
        return found | found.pop('warp', {})
    for step,name,base in pairs.values():
        changed = settings(base).items() - settings(name).items()
        if base == step: assert len(changed) == more.get(name, 1)

def test_every_run_reaches_its_target():
    for step in steps:
        n = len(tested.loc[step])
        assert met(step) == f'{n} of {n}'

class ThreeEpochs(Callback):
    "Ends a fit early; its schedule is that of the whole."
    order = 1000
    def before_epoch(self):
        if self.epoch == 3: raise CancelFitException

@pytest.mark.mnist
@pytest.mark.parametrize('run', [('step1', 1, 2), ('step2', 1, 2), ('step3', 1, 2), ('step3', 0, 0)], ids=str)
def test_a_recorded_seed_trains_again_to_the_same_numbers(run):
    step,fold,seed = run
    torch.set_num_threads(1)
    learn = steps[step].train(seed=seed, fold=fold, data='mnist', device='cpu', cbs=ThreeEpochs())
    now = report.history(learn)
    then = epochs.set_index([*key, 'epoch']).sort_index().loc[run][:3]
    here = dict(processor=record.processor(), torch=torch.__version__, torchvision=torchvision.__version__,
                fastai=fastai.__version__)
    if (measured.loc[run, [*here]] == pd.Series(here)).all(): assert np.allclose(now, then, rtol=0, atol=1e-9)
    else:  # the same but for rounding, which training amplifies
        off = (now - then).abs()[1:]
        assert (off.train_accuracy < .003).all()
        assert (off.valid_accuracy < .004).all()
        assert (off.valid_loss < .01).all()

def test_the_lines_for_a_repl(monkeypatch):
    monkeypatch.chdir(project)
    *lines,last = re.findall(r'>>> (.*)', pages['results/README.md'])
    for line in lines: exec(line, globals())
    assert round(100*eval(last)['min'], 4)['step3', 0] == tested.lowest['step3', 0]

def test_an_idea_is_one_line_of_the_table():
    line, = re.findall(r"^('.*),$", pages['results/README.md'], re.M)
    (name,(step,arguments,_)), = eval(f'{{{line}}}', vars(experiments)).items()
    assert name not in experiments.experiments
    assert step.train(epochs=1, data='digits', **arguments).dls.train.after_batch
