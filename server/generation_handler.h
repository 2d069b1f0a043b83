// What chat and completions do alike once a request is understood: start the generation, and give its chunks
// the API's shape. Subclasses say how a request becomes prompts and where the text goes. Thread-safe.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "server/auth.h"
#include "server/generation.h"
#include "server/handlers.h"
#include "server/request_id.h"

namespace t6::server {

// Of all chunks of one answer.
struct AnswerHeader {
  std::string id;
  int64_t created = 0;
  std::string model;
  bool return_token_ids = false;

  template <typename Message>
  void Fill(Message* message) const {
    message->set_id(id);
    message->set_created(created);
    message->set_model(model);
  }
};

template <typename Request, typename Response, typename Chunk>
class GenerationHandlerBase : public GenerationHandler<Request, Response, Chunk> {
 public:
  GenerationHandlerBase(HandlerDeps deps, std::string endpoint, std::string id_prefix)
      : deps_(std::move(deps)), endpoint_(std::move(endpoint)), id_prefix_(std::move(id_prefix)) {}

  StatusOr<std::unique_ptr<StreamingCall<Chunk>>> Stream(const Request& request,
                                                         const CallContext& context) override {
    AnswerHeader header;
    T6_ASSIGN_OR_RETURN(auto generation, Begin(request, context, &header));
    const auto map = [this, header](GenerationChunk&& piece) {
      Chunk chunk;
      header.Fill(&chunk);
      if (piece.choice < 0) {
        *chunk.mutable_usage() = piece.usage;
      } else {
        FillChoice(std::move(piece), header, chunk.mutable_choice());
      }
      return chunk;
    };
    return std::unique_ptr<StreamingCall<Chunk>>(new MappedCall<Chunk>(std::move(generation), map));
  }

  StatusOr<std::unique_ptr<UnaryCall>> Create(const Request& request, const CallContext& context,
                                              std::function<void(StatusOr<Response>)> done) override {
    AnswerHeader header;
    T6_ASSIGN_OR_RETURN(auto generation, Begin(request, context, &header));
    auto collected = [this, header, done = std::move(done)](StatusOr<std::vector<GenerationChunk>> pieces) {
      if (!pieces.ok()) return done(pieces.status());
      Response response;
      header.Fill(&response);
      for (GenerationChunk& piece : *pieces) {
        if (piece.choice < 0) {
          *response.mutable_usage() = piece.usage;
        } else {
          FillChoice(std::move(piece), header, response.add_choices());
        }
      }
      done(std::move(response));
    };
    return std::unique_ptr<UnaryCall>(new CollectedCall(std::move(generation), std::move(collected)));
  }

 protected:
  using Choice = std::decay_t<decltype(std::declval<Chunk>().choice())>;

  // Checks everything, and makes the prompts' requests with text and tokens; the rest is filled in here.
  virtual StatusOr<std::vector<GenerationSpec::Prompt>> Prepare(const ServedModel& model,
                                                                const Request& request) const = 0;
  virtual void FillText(std::string&& text, bool first, Choice* choice) const = 0;

 private:
  StatusOr<std::shared_ptr<Generation>> Begin(const Request& request, const CallContext& context,
                                              AnswerHeader* header) {
    const absl::Time start = absl::Now();
    GenerationSpec spec;
    spec.record.id = context.request_id;
    spec.record.transport = context.transport;
    spec.record.endpoint = endpoint_;
    spec.record.tenant = context.tenant;
    RequestRecord refused = spec.record;
    auto generation = TryBegin(request, context, std::move(spec), header);
    if (!generation.ok() && deps_.sink) {
      refused.status = generation.status();
      refused.finish = absl::StatusCodeToString(refused.status.code());
      refused.total = absl::Now() - start;
      deps_.sink(refused);
    }
    return generation;
  }

  StatusOr<std::shared_ptr<Generation>> TryBegin(const Request& request, const CallContext& context,
                                                 GenerationSpec spec, AnswerHeader* header) {
    const ServedModel* model = deps_.slot->Get();
    if (model == nullptr) return Unavailable("the model is still being loaded");
    if (context.deadline <= absl::Now())
      return Status(absl::StatusCode::kDeadlineExceeded, "the deadline has passed");
    T6_ASSIGN_OR_RETURN(spec.prompts, Prepare(*model, request));
    const std::string tenant_key = TenantPageKey(context.tenant);
    for (GenerationSpec::Prompt& prompt : spec.prompts) {
      prompt.request.name = context.request_id;
      prompt.request.tenant = tenant_key;
      prompt.request.deadline = context.deadline;
      prompt.request.cache_salt = request.cache_salt();
      prompt.request.priority = request.priority();
      prompt.text.stop.assign(request.sampling().stop().begin(), request.sampling().stop().end());
    }
    *header = {MakeId(id_prefix_), absl::ToUnixSeconds(absl::Now()), model->name, request.return_token_ids()};
    return Generation::Start(*model, *deps_.executor, std::move(spec), deps_.sink);
  }

  void FillChoice(GenerationChunk&& piece, const AnswerHeader& header, Choice* choice) const {
    TextDelta& delta = piece.delta;
    choice->set_index(piece.choice);
    FillText(std::move(delta.text), piece.first, choice);
    for (v1::TokenLogprob& logprob : delta.logprobs) *choice->add_logprobs() = std::move(logprob);
    if (header.return_token_ids) {
      choice->mutable_token_ids()->Add(delta.token_ids.begin(), delta.token_ids.end());
      if (piece.first) choice->mutable_prompt_token_ids()->Add(piece.prompt->begin(), piece.prompt->end());
    }
    if (delta.finish == FinishReason::kStop) choice->set_finish_reason(v1::FINISH_REASON_STOP);
    if (delta.finish == FinishReason::kLength) choice->set_finish_reason(v1::FINISH_REASON_LENGTH);
    if (delta.stop_string) choice->set_stop_string(*delta.stop_string);
    if (delta.stop_token) choice->set_stop_token_id(*delta.stop_token);
  }

  const HandlerDeps deps_;
  const std::string endpoint_;
  const std::string id_prefix_;
};

}  // namespace t6::server
