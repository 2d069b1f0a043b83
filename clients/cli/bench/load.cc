#include "clients/cli/bench/load.h"

#include <boost/asio/post.hpp>
#include <cmath>
#include <memory>
#include <utility>

namespace t6::cli {
namespace {

// Or a server that refuses at once would be asked as fast as this machine can.
constexpr std::chrono::milliseconds kPauseAfterFailure(50);

BenchClock::duration Seconds(double seconds) {
  return std::chrono::duration_cast<BenchClock::duration>(std::chrono::duration<double>(seconds));
}

}  // namespace

void Sample::OnText(BenchClock::time_point now) {
  if (has_text) {
    gaps.push_back(std::chrono::duration<float>(now - last_text).count());
  } else {
    first_text = now;
  }
  has_text = true;
  last_text = now;
}

double PoissonArrivals::Next() {
  // By hand: the library's exponential distribution draws differently elsewhere. 53 bits, never 1.
  const double uniform = static_cast<double>(random_() >> 11) * 0x1p-53;
  return at_ -= std::log1p(-uniform) / rate_;
}

Load::Load(boost::asio::io_context& io, Target& target, Workload& workload, const LoadPlan& plan,
           OnSample on_sample)
    : io_(io),
      target_(target),
      workload_(workload),
      plan_(plan),
      on_sample_(std::move(on_sample)),
      arrivals_(plan.rate.value_or(1), plan.seed),
      arrival_timer_(io),
      duration_timer_(io) {}

void Load::Run() {
  io_.restart();
  work_.emplace(io_.get_executor());
  started_ = BenchClock::now();
  if (plan_.duration) {
    duration_timer_.expires_at(started_ + Seconds(*plan_.duration));
    duration_timer_.async_wait([this](boost::system::error_code error) {
      if (error) return;
      duration_ended_ = true;
      // What was due before is sent, however late this machine is with it: or it would ask less than it
      // should.
      if (!plan_.rate || arrivals_ended_) EndIssuing();
    });
  }
  if (plan_.rate) {
    ScheduleArrival();
  } else {
    for (int i = 0; i < plan_.concurrency && MayIssue(); ++i) Issue(BenchClock::now());
  }
  io_.run();
}

void Load::Stop() {
  boost::asio::post(io_, [this] {
    target_.CancelAll();
    EndIssuing();
  });
}

bool Load::MayIssue() const { return issuing_ && sent_ + not_sent_ < plan_.requests; }

void Load::Issue(BenchClock::time_point due) {
  ++sent_;
  ++in_flight_;
  target_.Send(workload_.Next(), due, [this](Sample sample) {
    boost::asio::post(io_, [this, sample = std::move(sample)]() mutable { OnDone(std::move(sample)); });
  });
}

void Load::OnDone(Sample sample) {
  --in_flight_;
  const bool failed = !sample.error.empty();
  on_sample_(std::move(sample));
  if (!plan_.rate && MayIssue()) {
    if (!failed) return Issue(BenchClock::now());
    auto pause = std::make_shared<boost::asio::steady_timer>(io_, kPauseAfterFailure);
    pause->async_wait([this, pause](boost::system::error_code) {
      if (MayIssue()) Issue(BenchClock::now());
      EndIfOver();
    });
  }
  EndIfOver();
}

void Load::ScheduleArrival() {
  if (!MayIssue()) return EndIfOver();
  const double at = arrivals_.Next();
  if (plan_.duration && at >= *plan_.duration) {
    arrivals_ended_ = true;
    if (duration_ended_) EndIssuing();
    return;
  }
  const BenchClock::time_point due = started_ + Seconds(at);
  arrival_timer_.expires_at(due);
  arrival_timer_.async_wait([this, due](boost::system::error_code error) {
    if (error || !MayIssue()) return EndIfOver();
    if (in_flight_ < plan_.max_in_flight) {
      Issue(due);
    } else {
      ++not_sent_;
    }
    ScheduleArrival();
  });
}

void Load::EndIssuing() {
  issuing_ = false;
  arrival_timer_.cancel();
  EndIfOver();
}

void Load::EndIfOver() {
  if (in_flight_ > 0 || MayIssue()) return;
  duration_timer_.cancel();
  work_.reset();
}

}  // namespace t6::cli
