"The texts give the numbers of the recorded runs, the code is what was recorded, and a recording loses nothing."
import contextlib, json, os, re, signal, socket, subprocess, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fastai, pandas as pd, psutil, pytest, torch, torchvision
from fastai.vision.all import Callback, CancelFitException
from fastcore.script import CliError

import data, evidence, models, record, report, step1, step2, step3
from conftest import offline, project
from evidence import epochs, measured, pairs, runs, tested

key = record.key
steps = dict(step1=step1, step2=step2, step3=step3)
pages = {name: (project/name).read_text(encoding='utf-8') for name in ('README.md', 'results/README.md')}
readme = pages['results/README.md']
rates = pd.read_csv(evidence.here/'lr_find.csv').groupby('step').median(numeric_only=True)

def about(name):
    "What a text may say of experiment `name`."
    found = tested.loc[name]
    train,test = round(100*found.clean_accuracy.mean(), 2),round(found.final.mean(), 2)  # a reader subtracts these
    said = f'{train:.2f} {test:.2f} {train - test:.2f} {found.accuracy.mean():.2f} {found.lowest.min():.2f}'
    return f'{said} {found.sd.mean():.2f} {found.parameters[0]:,} {evidence.met(name)} epoch {evidence.since(name)} '

def numbers(text):
    spaced = re.sub(r'\s+', ' ', text)
    return set(re.findall(r'\d+\.\d+|\d+,\d{3}|\d+ of [12]0|(?<=epoch )\d+ to \d+', spaced))

@pytest.mark.parametrize('page', pages)
def test_the_tables_and_the_prose_of_a_page_are_as_recorded(page):
    assert evidence.fill(pages[page]) == pages[page]
    prose = re.sub(r'(?s)<!-- table.*?<!-- end -->|```.*?```', '', pages[page])
    recorded = f'99.40 {evidence.seeds_on_folds()} '
    for name in ('step1', 'step2', 'step3', 'step3-GPU'): recorded += about(name)
    assert set(re.findall(r'\d\d\.\d\d(?=%)', prose)) <= numbers(recorded)

@pytest.mark.parametrize('step', steps)
def test_every_number_in_the_text_of_a_step_is_in_its_tables(step):
    text,target = steps[step].__doc__,steps[step].target
    recorded = f'98.30 98.65 98.80 99.10 99.40 1.35 0.90 0.60 {record.recipe(step)} {evidence.result(step)} '
    for layer in models.layers(models.nets[f'Model_{step[-1]}']()): recorded += f'{layer[2]:,} '
    for rate in rates.loc[step]: recorded += f'{rate:.4f} '
    rows = []
    for what in evidence.changes:
        of,name,base = pairs[what]
        recorded += f'{evidence.row(what)} '
        if of != step: continue
        rows.append(evidence.row(what))
        recorded += f'{about(name)} {about(base)} {evidence.met(base, target)} '
    assert set(re.findall(r'\n +([+-].*)', text)) <= set(rows)
    assert f'recorded: {evidence.result(step)}\n' in text
    assert numbers(text) <= numbers(recorded), numbers(text) - numbers(recorded)

@pytest.mark.mnist
def test_the_digits_that_step_3_confuses():
    found = evidence.confused('step3', data.mnist_dls('mnist').valid_ds.y)
    said = re.findall(r'(\d) (?:read )?as (\d)', step3.__doc__)
    assert [(int(digit), int(taken_for)) for digit,taken_for in said] == [*found.index[:3]]

def test_recorded_runs_are_whole():
    assert not runs.commit.str.contains('dirty|unknown').any()
    rows = epochs.groupby(key).epoch.agg(list)
    assert len(rows) == len(runs)
    for run in runs.set_index(key).itertuples():
        assert rows[run.Index] == [*range(1, 1 + json.loads(run.recipe)['epochs'])]
    for run in tested.itertuples(): assert len(run.wrong.split()) == round(10_000 - 100*run.final)
    for name in runs.experiment[runs.fold == 0]:
        seeds = tested.loc[name].index
        assert [*seeds] == [*range(len(seeds))]  # none is left out

@pytest.mark.parametrize('name', record.experiments)
def test_the_code_is_the_recipe_that_was_recorded(name):
    assert set(runs.recipe[runs.experiment == name]) == {record.recipe(name)}

@pytest.mark.parametrize('what', [what for what,(step,name,base) in pairs.items() if base == step])
def test_an_experiment_changes_exactly_one_thing(what):
    step,name,_ = pairs[what]
    def recipe(name):
        found = json.loads(record.recipe(name))
        return found | found.pop('warp', {})
    changed = recipe(step).items() - recipe(name).items()
    more = {'without-augmentation': 5, 'elastic-only': 4, 'constant-0.003': 2, 'constant-0.006': 2}
    assert len(changed) == more.get(name, 1)

@pytest.mark.parametrize('step,after', [('step1', step2), ('step2', step3), ('step3', None)])
def test_every_run_reaches_its_target_but_not_that_of_the_next_step(step, after):
    n = len(tested.loc[step])
    assert evidence.met(step) == f'{n} of {n}'
    if after: assert f'meets this in {evidence.met(step, after.target)} seeds' in re.sub(r'\s+', ' ', after.__doc__)

def test_intervals_and_signs(monkeypatch):
    monkeypatch.setattr(evidence, 'difference', lambda what: pd.Series([-.001, -.002, -.003]))
    assert evidence.words('without EMA', 4) == '-0.0020 ± 0.0025'  # Student's t, two degrees of freedom
    assert evidence.words('without EMA') == '+0.00 ± 0.00'

def test_the_gpu_of_the_readme():
    gpu = tested.loc['step3-GPU']
    mean = f'{gpu.accuracy.mean():.2f}% ± {evidence.half(gpu.accuracy):.2f}'
    seconds = f'{gpu.seconds.min()} to {gpu.seconds.max()} seconds'
    said = f'{mean}, lowest {gpu.lowest.min():.2f}%, target met {evidence.met("step3-GPU")}, {seconds} each'
    assert said in pages['README.md'].replace('\n', ' ')

def test_learning_rates_are_read_off_lr_find():
    for step in ('step1', 'step2'): assert rates.valley[step] < steps[step].lr < rates.slide[step]
    valley,minimum = rates.valley.step3,rates.minimum.step3
    assert valley < minimum < step3.lr < rates.steep.step3
    assert f'(median {minimum:.4f})' in readme and f'`valley`, {valley:.4f}' in readme

class ThreeEpochs(Callback):
    "Ends a fit early; its schedule is that of the whole."
    order = 1000
    def before_epoch(self):
        if self.epoch == 3: raise CancelFitException

@pytest.mark.mnist
@pytest.mark.parametrize('run', [('step1', 0, 0), ('step2', 0, 0), ('step3', 0, 0), ('step3', 1, 2)], ids=str)
def test_a_recorded_seed_trains_again_to_the_same_numbers(run):
    if run not in measured.index: pytest.skip('not recorded')
    step,fold,seed = run
    torch.set_num_threads(1)
    learn = steps[step].train(seed=seed, fold=fold or None, data='mnist', device='cpu', cbs=ThreeEpochs())
    off = (report.history(learn) - epochs.set_index([*key, 'epoch']).sort_index().loc[run]).abs()[:3]
    here = dict(processor=record.processor(), torch=torch.__version__, torchvision=torchvision.__version__,
                fastai=fastai.__version__)
    same = (measured.reindex(columns=[*here]).loc[run] == pd.Series(here)).all()
    if same: assert (off < 1e-9).all(axis=None)  # bit-identical, as far as it is told
    else: assert (off.train_accuracy[1:] < .003).all()

def train(seed, fold=0): return record.train('step3-4epochs', fold, seed, 'digits')

def test_a_run_is_recorded_as_it_was():
    (run,rows),(_,held_out) = train(0),train(0, fold=1)
    assert rows.valid_loss.iloc[-1] != held_out.valid_loss.iloc[-1]
    assert run['clean_accuracy'] != rows.valid_accuracy.iloc[-1]
    _,labels = data.load_digits()[1]
    for answer in run['wrong'].split():
        image,taken_for = map(int, answer.split(':'))
        assert labels[image] != taken_for

def test_two_threads_do_not_disturb_each_other():
    with ThreadPoolExecutor(2) as threads: together = [*threads.map(train, (0, 1))]
    for seed in (0, 1): assert together[seed][1].equals(train(seed)[1])

def test_what_cannot_be_recorded_is_not_trained(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr('dask.distributed.Client', lambda **kwargs: sys.exit())  # before anything is trained
    here = Path(os.path.relpath(record.here))
    for to,why in ((here, 'only MNIST'), (tmp_path/'none', 'No such'), (Path(__file__), 'Not a directory')):
        with pytest.raises(CliError, match=why): record.main('step1', data='digits', to=to)
    with pytest.raises(CliError, match="'step4' is none of step1"): record.main('step4')
    with pytest.raises(SystemExit): record.main('step1', folds=True, seeds=2, to=tmp_path)
    assert capsys.readouterr().out == '12 runs to record\n'
    monkeypatch.setenv('PATH', '')  # without git
    assert record.commit() == 'unknown'

def test_the_lines_for_a_repl(monkeypatch):
    monkeypatch.chdir(project)
    *lines,last = re.findall(r'>>> (.*)', readme)
    for line in lines: exec(line, globals())
    assert round(100*eval(last)['min'], 4)['step3', 0] == tested.lowest['step3', 0]

def readme_commands(to):
    "The commands of results/README.md, for four epochs on the small digits."
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    digits = f'step3-4epochs --data digits --to {to}'
    text = readme.replace('NAME', digits).replace('step3 --seeds 20', digits)
    text = text.replace('8786', f'{port}').replace('HOST', '127.0.0.1').replace('FOLDER', f'{to}')
    return re.findall(r'\n    (.*)', text)

def end(process):
    "Kill a command and all that it started."
    with contextlib.suppress(ProcessLookupError): os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()

def test_the_commands_of_the_readme_survive_kills(tmp_path):
    "Of a recording, between its two files as well, and of one of a cluster's workers: every run is there once."
    env = {**os.environ, **offline, 'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}'}
    env.pop('PYTHONPATH', None)
    started = []
    def start(line):
        started.append(subprocess.Popen(line, shell=True, cwd=project, env=env, start_new_session=True, text=True,
                                        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL))
        return started[-1]
    run,rows = train(0)  # what a killed recording left: a whole run, and half of another
    record.append(tmp_path, {**run, 'commit': 'none'}, pd.concat([rows, rows.iloc[:1].assign(seed=1)]))
    on_folds,scheduler,worker,recording = readme_commands(tmp_path)
    try:
        killed = start(on_folds)
        assert killed.stdout.readline() == '12 runs to record\n'
        assert '; 1 of 12 runs, about 0 h' in killed.stdout.readline()
        end(killed)
        start(scheduler)
        workers,recording = start(worker),start(recording)
        assert recording.stdout.readline() == '4 runs to record\n'
        assert '; 1 of 4 runs, about 0 h' in recording.stdout.readline()
        for process in psutil.Process(workers.pid).children(recursive=True):
            if 'spawn_main' in f'{process.cmdline()}': one_of_them = process
        one_of_them.kill()
        assert recording.wait(100) == 0
    finally:
        for process in started: end(process)
    found = pd.read_csv(tmp_path/'runs.csv')
    assert sorted(found.seed[found.fold == 0]) == [0, 1, 2, 3, 4]
    size = pd.read_csv(tmp_path/'epochs.csv').groupby(key).size()
    assert len(size) == len(found)
    assert (size == 4).all()
