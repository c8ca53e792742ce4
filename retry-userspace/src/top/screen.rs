//! The terminal: taken when `top` begins, and given back however it ends, by a key, a signal or a panic.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::Paragraph;
use ratatui::{DefaultTerminal, Frame};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// Between two looks for a signal.
const LOOK: Duration = Duration::from_millis(100);

/// The terminal in our hands. Dropping it gives it back.
pub(super) struct Screen {
    terminal: DefaultTerminal,
    signalled: Arc<AtomicBool>,
    scrolled: u16,
}

/// What the operator wants.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Wish {
    /// The next look.
    Look,
    /// The end.
    End,
}

impl Screen {
    /// Takes the terminal: raw mode, and its second screen. A panic gives it back before it is told.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn take() -> io::Result<Self> {
        let signalled = Arc::new(AtomicBool::new(false));
        for signal in [SIGTERM, SIGINT, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&signalled))?;
        }
        Ok(Self { terminal: ratatui::try_init()?, signalled, scrolled: 0 })
    }

    /// Shows `lines` until `next`, or until the operator or a signal ends it.
    ///
    /// # Errors
    /// The terminal is gone.
    pub(super) fn show(&mut self, lines: &[Line<'_>], foot: &str, next: Instant) -> io::Result<Wish> {
        loop {
            self.terminal.draw(|frame| draw(frame, lines, foot, &mut self.scrolled))?;
            loop {
                if self.signalled.load(Ordering::Relaxed) {
                    return Ok(Wish::End);
                }
                let left = next.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Ok(Wish::Look);
                }
                if !event::poll(left.min(LOOK))? {
                    continue;
                }
                match event::read()? {
                    Event::Key(key) if key.kind != KeyEventKind::Release => {
                        let with_control = key.modifiers.contains(KeyModifiers::CONTROL);
                        match key.code {
                            KeyCode::Char('q') | KeyCode::Esc => return Ok(Wish::End),
                            KeyCode::Char('c') if with_control => return Ok(Wish::End),
                            KeyCode::Up | KeyCode::Char('k') => self.scrolled = self.scrolled.saturating_sub(1),
                            KeyCode::Down | KeyCode::Char('j') => self.scrolled = self.scrolled.saturating_add(1),
                            KeyCode::PageUp => self.scrolled = self.scrolled.saturating_sub(10),
                            KeyCode::PageDown => self.scrolled = self.scrolled.saturating_add(10),
                            _ => {}
                        }
                        break;
                    }
                    Event::Resize(..) => break,
                    _ => {}
                }
            }
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// Draws `lines`, from the one that is scrolled to, and `foot` below them.
pub(super) fn draw(frame: &mut Frame<'_>, lines: &[Line<'_>], foot: &str, scrolled: &mut u16) {
    let [body, last] = Layout::vertical([Constraint::Min(0), Constraint::Length(1)]).areas(frame.area());
    let most = lines.len().saturating_sub(body.height.into());
    *scrolled = (*scrolled).min(u16::try_from(most).unwrap_or(u16::MAX));
    frame.render_widget(Paragraph::new(lines.to_vec()).scroll((*scrolled, 0)), body);
    let foot = Line::styled(foot.to_owned(), Style::new().add_modifier(Modifier::REVERSED));
    frame.render_widget(Paragraph::new(foot), last);
}
