PYTHON ?= python3
BIN = .venv/bin

.PHONY: install quickstart demo docs hub-demo test fuzz attack soak quality format

install: .venv/installed

.venv/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

quickstart: install ## DCNv2, FLIP_ID, FLIP_PLM and FLIP on generated click logs; no download
	$(BIN)/python -m benchmarks.quickstart

demo: install outputs/quickstart/all_results.json ## a page that shows what the quickstart's model makes of a row
	$(BIN)/python -m data_scripts.demo --output_dir outputs/demo-rows
	$(BIN)/python -m modeling_flip.serving.demo --model outputs/quickstart --rows outputs/demo-rows/test.parquet

outputs/quickstart/all_results.json: | .venv/installed
	$(BIN)/python train.py configuration/quickstart.yaml

docs: install ## the site of docs/, in build/docs; a warning is an error
	$(BIN)/python -m zensical build --strict

hub-demo: install ## the quickstart, pushed to a Hub on this machine and loaded from there
	$(BIN)/python -m tests.hub.demo

test: install ## everything that must hold; style and types are checked while the tests run, and told of after them
	@log=$$(mktemp); $(MAKE) quality > $$log 2>&1 & quality=$$!; \
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder; tests=$$?; \
	wait $$quality; quality=$$?; cat $$log; rm $$log; exit $$((tests | quality))

attack: install ## kills at every file that a run writes, damage of every file of a checkpoint; hours
	$(BIN)/python -m tests.attack.kills

fuzz: install ## rows, files and tables of any mess, of another seed each time
	$(BIN)/python -m tests.attack.fuzz

soak: install ## signals at random steps of runs, which go on and end with the same bits
	$(BIN)/python -m tests.resume.soak

quality: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
