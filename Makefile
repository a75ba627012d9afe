# The commands of this repository. Each installs what it lacks first (.ci/setup.sh); none needs anything beforehand
# but make and git on Debian 12.
SHELL := /bin/bash
.DEFAULT_GOAL := help

.PHONY: help
help:
	@echo 'make demo    serve a real model with four workers on this machine and watch it being levelled (ARGS="--combine fast"; ARGS=--device=cuda: with two, each on a GPU)'
	@echo 'make test    everything that CI runs; LONG=1: the long forms too'
	@echo 'make build   everything; links to the programs in bin/'
	@echo 'make cuda    the CUDA code, and its tests where there is a GPU'
	@echo 'make python  the Python package ballast-planner: a wheel in bin/python, and libballast_planner.so in bin/'
	@echo 'make image   container images in bin/images, an OCI layout (IMAGES="controller worker": without the CUDA one)'
	@echo 'make check   formatting, lint, thread-safety analysis, proto compatibility, docs'
	@echo 'make bench   every benchmark; results in bench-results/'

.PHONY: demo
demo:
	@.ci/setup.sh $(if $(findstring --device=cuda,$(ARGS)),cuda,build)
	@.ci/build.sh $(if $(findstring --device=cuda,$(ARGS)),--config=cuda) //tests/demo
	@exec bin/.bazel/tests/demo/demo $(ARGS)

.PHONY: test
test:
	@.ci/setup.sh
	@.ci/test.sh

.PHONY: build
build:
	@.ci/setup.sh build
	@.ci/build.sh //...

.PHONY: cuda
cuda:
	@.ci/setup.sh cuda
	@.ci/cuda.sh

.PHONY: python
python:
	@.ci/setup.sh python
	@.ci/python.sh

IMAGES := controller worker worker-cuda

.PHONY: image
image:
	@.ci/setup.sh $(if $(findstring cuda,$(IMAGES)),image,build)
	@.ci/image.sh $(IMAGES)

.PHONY: check
check:
	@.ci/setup.sh
	@.ci/check.sh

.PHONY: bench
bench:
	@.ci/setup.sh
	@.ci/bench.sh
