//! `bombus chat`: a conversation.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use bombus_core::chat::ChatRequest;
use clap::Args;
use tokio::time::timeout;

use super::answer::{Answer, Ended};
use super::answerer::{AnswerArgs, Answerer};
use super::screen::Screen;
use super::{Global, output};
use crate::config::Settings;
use crate::data_dir::DataDir;
use crate::failure::{self, Exit, Failure};
use crate::node_client::Refusal;
use crate::platform::{RepeatedStop, StopSignal, TerminalMode};

mod command;
mod conversation;
mod input;

use command::Command;
use conversation::Conversation;
use input::{Input, Said};

/// Arguments of `bombus chat`.
#[derive(Debug, Args)]
pub(crate) struct ChatArgs {
    #[command(flatten)]
    answer: AnswerArgs,
    /// Print one JSON object on a line for each answer, instead of the answer as it comes
    #[arg(long)]
    json: bool,
}

/// How long the names of the models may take that are completed after /model.
const NAMES_TIME_MAX: Duration = Duration::from_secs(1);

pub(super) fn run(global: &Global, args: &ChatArgs) -> Result<ExitCode> {
    let settings = global.settings(&[])?;
    let _telemetry = global.begin_quiet_logs(&settings)?;
    super::block_on(chat(global, args, &settings))
}

async fn chat(global: &Global, args: &ChatArgs, settings: &Settings) -> Result<ExitCode> {
    let stop = RepeatedStop::listen().context("signals cannot be listened to")?;
    let terminal = TerminalMode::save();
    let data_dir = global.data_dir()?;
    let interactive = std::io::stdin().is_terminal();
    let answerer = Answerer::find(settings, &data_dir).await?;
    let model = args.answer.model.clone().unwrap_or_else(|| answerer.default_model(settings));
    let input = if interactive {
        let names = timeout(NAMES_TIME_MAX, answerer.model_names()).await;
        Input::terminal(data_dir.chat_history(), names.ok().and_then(Result::ok).unwrap_or_default())?
    } else {
        Input::lines()?
    };
    let mut chat = Chat {
        global,
        args,
        data_dir: &data_dir,
        interactive,
        conversation: Conversation::new(model, args.answer.system.clone()),
        screen: if args.json { Screen::Silent } else { Screen::readable() },
        answerer,
        input,
        stop,
    };
    let code = chat.go_on().await;
    terminal.restore();
    chat.answerer.stop().await;
    code
}

/// A conversation with all that it needs.
struct Chat<'a> {
    global: &'a Global,
    args: &'a ChatArgs,
    data_dir: &'a DataDir,
    interactive: bool,
    conversation: Conversation,
    screen: Screen,
    answerer: Answerer,
    input: Input,
    stop: RepeatedStop,
}

/// What comes after a turn.
enum Then {
    GoOn,
    Interrupted,
    End(ExitCode),
}

impl Chat<'_> {
    /// Takes turns until somebody ends it.
    async fn go_on(&mut self) -> Result<ExitCode> {
        self.greet();
        let mut interrupts = 0;
        loop {
            let said = tokio::select! {
                biased;
                signal = self.stop.next() => return Ok(ExitCode::from(signal.exit_code())),
                said = self.input.next() => said?,
            };
            let then = match said {
                Said::End => return Ok(ExitCode::SUCCESS),
                Said::Interrupted => Then::Interrupted,
                Said::Text(text) => {
                    interrupts = 0;
                    self.turn(&text).await?
                }
            };
            match then {
                Then::GoOn => {}
                Then::End(code) => return Ok(code),
                Then::Interrupted if interrupts > 0 => return Ok(Exit::Interrupted.into()),
                Then::Interrupted => {
                    interrupts += 1;
                    self.global.notice("Ctrl-C again, or /quit, ends the chat");
                }
            }
        }
    }

    fn greet(&self) {
        if self.interactive {
            let place = match self.answerer.node_id() {
                Some(node) => format!("node {node}"),
                None => "this process".to_owned(),
            };
            self.global.notice(&format!("{} at {place}; /help lists the commands", self.conversation.model()));
        }
    }

    /// Does what was said. In a terminal a mistake is told and the conversation goes on; a program is told by the exit code.
    async fn turn(&mut self, text: &str) -> Result<Then> {
        let done = match Command::parse(text) {
            Ok(None) => return Ok(Then::GoOn),
            Ok(Some(Command::Say(said))) => self.say(said).await,
            Ok(Some(Command::Quit)) => Ok(Then::End(ExitCode::SUCCESS)),
            Ok(Some(command)) => self.obey(command).await.map(|()| Then::GoOn),
            Err(mistake) => Err(Failure::new(Exit::Usage, mistake).hint("/help lists the commands").into()),
        };
        match done {
            Err(error) if self.interactive => {
                failure::report(&error);
                Ok(Then::GoOn)
            }
            other => other,
        }
    }

    async fn obey(&mut self, command: Command) -> Result<()> {
        match command {
            Command::Help => eprintln!("{}", command::HELP),
            Command::ShowModel => {
                self.answerer.renew(self.data_dir).await?;
                let names = self.answerer.model_names().await?;
                eprintln!("{}; there are: {}", self.conversation.model(), names.join(", "));
            }
            Command::UseModel(name) => {
                self.answerer.renew(self.data_dir).await?;
                let placement = self.answerer.placement(&name, &self.args.answer.scope).await?;
                // One that is only busy answers after a while.
                if !placement.candidates.iter().any(|candidate| candidate.model.is_some()) {
                    placement.best()?;
                }
                self.conversation.set_model(name);
            }
            Command::ShowSystem => eprintln!("{}", self.conversation.system().unwrap_or("no system message")),
            Command::SetSystem(text) => self.conversation.set_system(text),
            Command::Clear => self.conversation.clear(),
            Command::Save(path) => {
                self.conversation.save(&path)?;
                self.global.notice(&format!("{} turns saved in {}", self.conversation.turns(), path.display()));
            }
            Command::Load(path) => {
                self.conversation = Conversation::load(&path)?;
                let (turns, model) = (self.conversation.turns(), self.conversation.model());
                self.global.notice(&format!("{turns} turns loaded; the model is {model}"));
            }
            Command::Say(_) | Command::Quit => {}
        }
        Ok(())
    }

    /// Asks the model. A conversation that its context does not hold is asked again without its oldest half. What is left out stays in the
    /// conversation until an answer has come.
    async fn say(&mut self, text: String) -> Result<Then> {
        self.conversation.add_question(text);
        let mut asked = self.conversation.clone();
        let mut left_out = 0;
        let (answer, outcome) = loop {
            let request = self.args.answer.apply(asked.request());
            let mut answer = Answer::new();
            let outcome = self.answer(request, &mut answer).await;
            let dropped = match &outcome {
                Err(error) if is_context_exceeded(error) => asked.drop_oldest_half(),
                _ => 0,
            };
            if dropped == 0 {
                break (answer, outcome);
            }
            left_out += dropped;
        };
        if !answer.text().is_empty() {
            self.conversation = asked;
            let count = left_out + answer.left_out() as usize;
            if count > 0 {
                self.global.notice(&format!("note: the {count} oldest turns are left out: the context holds no more"));
            }
        }
        self.after(&answer, outcome)
    }

    async fn answer(&mut self, request: ChatRequest, answer: &mut Answer) -> Result<Ended> {
        let (answerer, screen) = (&mut self.answerer, &mut self.screen);
        let work = async {
            answerer.renew(self.data_dir).await?;
            let started = answerer.chat(request, &self.args.answer.scope).await?;
            let ended = answer.read(started, screen).await?;
            answer.name_nodes(answerer).await;
            Ok(ended)
        };
        let outcome = tokio::select! {
            outcome = work => outcome,
            signal = self.stop.next() => Ok(Ended::Stopped(signal)),
        };
        self.screen.end()?;
        outcome
    }

    /// Keeps what the model said, a part of it too; a question without an answer is taken back.
    fn after(&mut self, answer: &Answer, outcome: Result<Ended>) -> Result<Then> {
        self.conversation.end_turn(answer.text());
        let ended = outcome?;
        if self.args.json {
            output::print(&format!("{}\n", answer.as_json()))?;
        }
        for takeover in answer.takeovers() {
            self.global.notice(&format!("note: {takeover}"));
        }
        Ok(match ended {
            Ended::Whole => {
                if self.interactive {
                    self.global.notice(&console::style(answer.summary()).for_stderr().dim().to_string());
                }
                Then::GoOn
            }
            Ended::ReaderGone => Then::End(ExitCode::SUCCESS),
            Ended::Stopped(StopSignal::Interrupt) if self.interactive => Then::Interrupted,
            Ended::Stopped(signal) => {
                self.global.notice("stopped");
                Then::End(ExitCode::from(signal.exit_code()))
            }
        })
    }
}

fn is_context_exceeded(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<Refusal>().is_some_and(Refusal::is_context_exceeded)
            || matches!(cause.downcast_ref(), Some(bombus_infer::BackendError::ContextExceeded { .. }))
    })
}
