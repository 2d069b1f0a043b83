# The few commands of the README. Each one first lets ./bootstrap install what is missing.
BUILD := build/release
MODEL := models/t6-docqa-14m

.PHONY: help demo serve test deploy-test bench lint
help:
	@echo 'make demo    build, start the server on the model that ships, ask it three questions over gRPC and HTTP'
	@echo 'make serve   start the server in the foreground; it says what to try'
	@echo 'make test    build and run every test'
	@echo 'make deploy-test   images, balancers, kills, chart, alerts, page: minutes, and more packages'
	@echo 'make bench   build and run the benchmarks'
	@echo 'make lint    formatting, include directions, clang-tidy'

define build
	@mkdir -p build
	@cmake --preset release > build/configure.log || { cat build/configure.log; exit 1; }
	@cmake --build $(BUILD) -j $$(tools/build_jobs) $(if $(1),--target $(1))
endef

demo:
	@./bootstrap
	$(call build,t6d t6)
	@python3 tools/demo.py $(BUILD)/bin $(MODEL)

serve:
	@./bootstrap
	$(call build,t6d t6)
	@echo
	@echo 'When it says that it listens, try in another terminal (ctrl-C here stops the server):'
	@echo '  http://127.0.0.1:8000/ in a browser: a document beside a chat'
	@echo '  $(BUILD)/bin/t6 ask --document $(MODEL)/museum.txt --stats "Who founded the museum?" "How much is a ticket?"'
	@echo '  $(BUILD)/bin/t6 chat'
	@echo '  $(BUILD)/bin/t6 bench'
	@echo "  curl http://127.0.0.1:8000/v1/models"
	@echo
	@exec $(BUILD)/bin/t6d --model $(MODEL)

test:
	@./bootstrap --dev
	$(call build)
	@ctest --preset release -j 2 -LE deploy

deploy-test:
	@./bootstrap --deploy
	$(call build,t6d t6)
	@ctest --preset release -L deploy -LE deploy-cuda

bench:
	@./bootstrap
	$(call build)
	@$(BUILD)/bin/bench_decode --model $(MODEL)
	@python3 bench/rag.py --bin $(BUILD)/bin --model $(MODEL)

lint:
	@./bootstrap --dev
	$(call build,t6_proto)
	@tools/lint/run
